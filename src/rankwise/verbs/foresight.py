"""What a run is forecast to take, before its model is loaded; and whether it is begun at all.

What certainly cannot fit is refused with what would. A model that plans do not know, or rows that cannot be read, are
no reason: the run itself says what is wrong with them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rankwise.errors import RankwiseError, ResourceError
from rankwise.planning.fitting import Remedy, remedies
from rankwise.run.manifest import Forecasted
from rankwise.run.records import Announce, Said
from rankwise.spec.experiment import Experiment
from rankwise.spec.planning import Planned
from rankwise.verbs.plan import Plan, plan

CERTAIN = 0.85
"""A forecast is at most 15 % off (docs/plan.md), so what needs more than is there even so cannot fit."""
OFFERED, SMALLER = 3, 0.7
"""How many changes are offered where memory ran out, and how much of what was forecast they may need."""


@dataclass(frozen=True)
class Foresight:
    plan: Plan

    @property
    def least(self) -> int:
        """Bytes, with as many blocks computed twice as a run may choose by itself."""
        made, asked = self.plan.made, self.plan.asked.training.recomputed_blocks
        if asked != "auto":
            return made.peak
        blocks = self.plan.shape.stacks[-1].count - made.job.lowest
        return min(made.peak, made.with_job(replace(made.job, recomputed=blocks)).peak)

    def check(self, announce: Announce, *, force: bool) -> None:
        room, least = self.plan.device.usable, self.least
        if least <= room:
            return
        told = f"this run is forecast to hold {_gigabytes(least)}, and {_gigabytes(room)} are free"
        if force or CERTAIN * least <= room:
            announce(Said(f"{told}; it may end for want of memory"))
            return
        found = _listed(self.plan.remedies) or "Nothing in its settings would make it fit: take a smaller model."
        raise ResourceError(f"{told}, so it was not begun. {found}\n--force-memory begins it all the same.")

    def remedies(self) -> list[Remedy]:
        """Where memory ran out although it was forecast to do: what is forecast to need much less."""
        made = self.plan.made
        room = min(self.plan.device.usable, round(SMALLER * made.peak))
        return remedies(made, room, self.plan.amount.longest, self.plan.changed)[:OFFERED]

    def recorded(self) -> Forecasted:
        made, told = self.plan.made, self.plan.duration
        return Forecasted(
            peak_bytes=made.peak, memory={part.name: round(part.bytes) for part in made.memory.parts},
            device=self.plan.device.name, trainable_parameters=made.parameters.trainable,
            adapter_bytes=made.parameters.file_bytes, steps=self.plan.steps, tokens_per_step=self.plan.step.tokens,
            seconds=None if told is None else told.total.likely, seconds_low=None if told is None else told.total.low,
            seconds_high=None if told is None else told.total.high,
        )  # fmt: skip


def foresee(experiment: Experiment) -> Foresight | None:
    """None where the plan cannot tell."""
    asked = Planned.model_validate(experiment.model_dump(mode="json", exclude_unset=True))
    try:
        made = plan(asked)
    except RankwiseError:
        return None
    return Foresight(made) if made.trained else None


def out_of_memory(foreseen: Foresight | None) -> ResourceError:
    found = foreseen.remedies() if foreseen is not None else []
    if not found:
        return ResourceError(
            "out of memory while training. Lower training.micro_batch_tokens (the result stays the same), or "
            "--max-length; --auto-batch does the first by itself."
        )
    return ResourceError(f"out of memory while training. {_listed(found)}\n--auto-batch does the first by itself.")


def _listed(found: list[Remedy]) -> str:
    if not found:
        return ""
    lines = [f"  {remedy.settings} ({_gigabytes(remedy.peak)}): {remedy.price}" for remedy in found]
    return "\n".join(["These are forecast to fit:", *lines])


def _gigabytes(amount: float) -> str:
    return f"{amount / 1e9:.1f} GB"
