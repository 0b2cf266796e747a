"""What a run is forecast to take, before its model is loaded; and whether it is begun at all.

What certainly cannot fit is refused with what would. A model that plans do not know, or rows that cannot be read, are
no reason: the run itself says what is wrong with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import psutil
import torch

from rankwise.base.precision import choose_precision
from rankwise.config.experiment import Experiment
from rankwise.config.reading import with_settings
from rankwise.config.training import TrainingConfig
from rankwise.errors import ConfigError, RankwiseError, ResourceError, first_line
from rankwise.forward.plan import plan
from rankwise.planning.devices import OF_LIMIT, Device, read_cards, this_machine, this_processor
from rankwise.planning.plan import Plan, Remedy
from rankwise.planning.processes import ONE_PROCESS, Processes
from rankwise.runs.manifest import BackendName, Forecasted
from rankwise.runs.records import Callback, StatusMessage, WarningMessage, silent
from rankwise.system.launched import launched, processes_here

YEAR = 365.25 * 86_400
CERTAIN = 0.85
"""Few forecasts are over 15 % too high (bench/plan-accuracy.md). What needs more than there is even so can't fit."""
OFFERED, SMALLER = 3, 0.7
"""How many changes are offered where memory ran out, and how much of what was forecast they may need."""


@dataclass(frozen=True)
class Foresight:
    """`is_settled`: the settings were chosen for the limit of memory and are not chosen again."""

    plan: Plan
    outputs: int | None = None
    """The number of outputs of a new head; None without one."""
    is_settled: bool = False

    @property
    def least(self) -> int:
        """Bytes, with as many blocks computed twice and as little at once as a run may choose by itself."""
        made, training = self.plan.forecast, self.plan.config.training
        smaller = training.auto_batch or (self.plan.config.model.memory is not None and not self.is_settled)
        tokens = self.plan.amount.longest if smaller else made.amount.tokens
        twice = made.blocks if training.activation_checkpointing == "auto" else made.recomputed
        return min(made.needed, made.with_tokens(tokens, twice).needed)

    @property
    def _limited(self) -> str | None:
        """The limit of memory, where less than that is not free anyway."""
        model = self.plan.config.model
        limit = model.memory_bytes
        return model.memory if limit is not None and self.plan.device.usable >= round(OF_LIMIT * limit) else None

    def check(self, callback: Callback, *, force: bool) -> None:
        duration = self.plan.duration
        if duration is not None and duration.total.low > YEAR:
            raise ConfigError([
                f"{self.plan.steps:,} steps are forecast to take {duration.total.low / YEAR:,.0f} years or more. "
                "Choose fewer with --steps or --epochs."
            ])  # fmt: skip
        room, least = self.plan.device.usable, self.least
        if least <= room:
            return
        limited = self._limited
        if limited and self.is_settled:
            told = (
                f"with the eager backend these settings need {_gigabytes(least)} of memory, but --memory is {limited}. "
                "Start again with --backend eager, which chooses settings for it"
            )
        elif limited:
            needed = math.ceil(least / OF_LIMIT / 1e8) / 10
            told = f"this run needs a limit of at least {needed:.1f} GB of memory, but --memory is {limited}"
        else:
            told = f"this run is forecast to need {_gigabytes(least)} of memory, but {_gigabytes(room)} are free"
        if force or (CERTAIN * least <= room and not limited):
            callback(WarningMessage(f"{told}; it may run out of memory"))
            return
        more = "give it that much, or " if limited and not self.is_settled else ""
        offered = _listed(self.plan.remedies) or f"No setting would make it fit: {more}use a smaller model."
        raise ResourceError(f"{told}, so it was not started. {offered}\n--force-memory starts it anyway.")

    def remedies(self) -> list[Remedy]:
        """Where memory ran out although it was forecast to do: what is forecast to need much less."""
        made = self.plan.forecast
        return self.plan.remedies_for(min(self.plan.device.usable, round(SMALLER * made.needed)))[:OFFERED]

    def recorded(self) -> Forecasted:
        made, told = self.plan.forecast, self.plan.duration
        return Forecasted(
            peak_bytes=made.peak, memory={part.name: round(part.bytes) for part in made.memory.parts},
            device=self.plan.device.name, trainable_parameters=made.parameters.trainable,
            adapter_bytes=made.parameters.file_bytes, steps=self.plan.steps, tokens_per_step=self.plan.step.tokens,
            operations=self.plan.step.operations,
            seconds=None if told is None else told.total.likely, seconds_low=None if told is None else told.total.low,
            seconds_high=None if told is None else told.total.high,
            share_of_steps=1.0 if told is None else (self.plan.steps or 1) * told.step.likely / told.total.likely,
        )  # fmt: skip


def foresee(experiment: Experiment, callback: Callback = silent, outputs: int | None = None) -> Foresight | None:
    """None where the plan cannot tell. It is no part of a training, so nothing that goes wrong in it ends one. The
    `outputs` of a new head are known by then."""
    made = _planned(
        lambda: plan(
            with_settings(experiment.as_written), on=_device(experiment), outputs=outputs, processes=_processes()
        ),
        callback,
    )
    return made and replace(made, outputs=outputs)


def within_limit(
    experiment: Experiment, forecast: Foresight | None, callback: Callback
) -> tuple[TrainingConfig, Foresight | None]:
    """The settings of a training that stays under its limit of memory (model.memory), and the forecast of it: as many
    blocks are computed twice as the forecast asks for, and as few tokens at once. Both give the same result but for
    rounding."""
    training = experiment.training
    if experiment.model.memory is None or forecast is None:
        return training, forecast
    plan, changes = forecast.plan, {}
    made, auto = plan.forecast, training.activation_checkpointing == "auto"
    tokens = plan.fit.tokens_recomputed if auto else plan.fit.tokens
    if not plan.fit.fits and 0 < tokens < made.amount.tokens:
        changes["max_batch_tokens"] = tokens
    if auto and (changes or made.recomputed):
        changes["activation_checkpointing"] = made.recomputed or made.blocks
    if not changes:
        return training, forecast
    settings = ", ".join(f"training.{name}={value}" for name, value in changes.items())
    told = f"to stay under {experiment.model.memory} of memory: {settings}; the result is the same but for rounding"
    callback(StatusMessage(told))
    training = training.model_copy(update=changes)
    again = foresee(experiment.model_copy(update={"training": training}), callback, forecast.outputs)
    return training, again or forecast


def _planned(planned: Callable[[], Plan], callback: Callback) -> Foresight | None:
    try:
        made = planned()
    except RankwiseError:
        return None
    except Exception as error:
        callback(StatusMessage(f"no forecast: {first_line(error)}"))
        return None
    return Foresight(made) if made.trained else None


def foresee_backend(forecast: Foresight | None, backend: BackendName, callback: Callback) -> Foresight | None:
    """A new forecast where a run computes with the eager backend, and the first one took the fused one for granted."""
    if forecast is None or backend != "eager" or forecast.plan.forecast.form == "plain":
        return forecast
    asked, device = forecast.plan.config, forecast.plan.device
    training = asked.training.model_copy(update={"backend": "eager"})
    again = _planned(
        lambda: plan(asked.model_copy(update={"training": training}), on=device, processes=forecast.plan.processes),
        callback,
    )
    if again is not None:
        before, now = forecast.plan.forecast.peak, again.plan.forecast.peak
        callback(
            WarningMessage(
                f"the eager backend is forecast to need {_gigabytes(now)} of memory, instead of {_gigabytes(before)}"
            )
        )
    return again and replace(again, is_settled=True)


def _processes() -> Processes:
    """That torchrun started; with as many on each machine as here."""
    own = launched()
    return ONE_PROCESS if own is None else Processes(own.size, -(-own.size // own.local_size))


def _device(experiment: Experiment) -> Device:
    """The one that torch would take, whatever else is in the machine. What this process holds already is part of what
    is forecast, so it counts as free."""
    device = choose_precision(experiment.base).device
    if device.type == "cpu":
        found = this_processor()
        share = (found.memory + psutil.Process().memory_info().rss) / processes_here()
        return found.with_memory(round(share))
    if device.type == "mps":
        return this_machine()
    free, total = torch.cuda.mem_get_info(device)
    (card,) = read_cards(f"{torch.cuda.get_device_name(device)}, {total // 1024**2}, {free // 1024**2}")
    return card


def out_of_memory(forecast: Foresight | None, auto_batch: bool) -> ResourceError:
    found = forecast.remedies() if forecast is not None else []
    itself = "" if auto_batch else "\nWith --auto-batch, rankwise lowers training.max_batch_tokens itself."
    if not found:
        return ResourceError(
            "out of memory while training. Lower training.max_batch_tokens (the result stays the same), or "
            f"--max-length.{itself}"
        )
    return ResourceError(f"out of memory while training. {_listed(found)}{itself}")


def _listed(remedies: list[Remedy]) -> str:
    if not remedies:
        return ""
    lines = [f"  {remedy.settings} ({_gigabytes(remedy.peak)}): {remedy.price}" for remedy in remedies]
    return "\n".join(["These settings are forecast to fit:", *lines])


def _gigabytes(amount: float) -> str:
    return f"{amount / 1e9:.1f} GB"
