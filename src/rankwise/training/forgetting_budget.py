"""A budget of forgetting: the anchor's weight follows what is measured, and the result keeps the budget.

    between steps    weight <- weight * (divergence / budget)^2, by at most a factor of 4 at a time, and never above
                     the one that was given
    at the end       strength = the largest s in [0, 1] at which divergence(s) <= budget

A budget with room to spare lowers the weight, so that the rows are learned better. A tight one is kept by the strength,
which costs less of the loss than a weight beyond the usual one (design/0013-keeping.md).

The divergence is measured on ordinary text (evaluation/prose.txt) that is neither trained on nor the anchor's. Between
steps a few of its blocks tell where the run is heading, at the end all of them count. The weight follows from the
records alone, so a run that is resumed goes on with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from math import ceil

from rankwise.evaluation.text import Text, Written, cut
from rankwise.models.loaded import LoadedModel
from rankwise.runs.manifest import KeptBudget, Results
from rankwise.runs.records import BudgetRecord, StatusMessage
from rankwise.training.anchor import Anchor, BaseOnText
from rankwise.training.trainer import Hook, Trainer
from rankwise.training.validation import Validation

BLOCKS, LENGTH = 16, 256
BETWEEN_STEPS = 4
"""Blocks that are measured between steps."""
MEASUREMENTS = 12
"""Of a run, about."""
MOST = 4.0
"""Factor by which the weight changes at a time."""
LOWEST = 0.01
HALVINGS = 7
"""Of the interval in which the strength is looked for."""


def ordinary_text(model: LoadedModel) -> Text:
    content = (files("rankwise.evaluation") / "prose.txt").read_text(encoding="utf-8")
    return cut(Written("ordinary text", content), model, blocks=BLOCKS, length=LENGTH, least=1)


@dataclass
class ForgettingBudget(Hook):
    """`records` are all measurements so far, an earlier process's too."""

    most: float
    ordinary: BaseOnText
    anchor: Anchor
    validation: Validation
    interval: int
    records: list[BudgetRecord] = field(default_factory=list)
    outcome: KeptBudget | None = None

    def __post_init__(self) -> None:
        self._highest = self.anchor.weight

    @staticmethod
    def interval_of(steps: int) -> int:
        return max(1, ceil(steps / MEASUREMENTS))

    def take_up(self, records: Iterable[BudgetRecord]) -> None:
        """Go on where an earlier process was."""
        self.records = list(records)
        if self.records:
            self.anchor.weight = self.records[-1].weight

    def recorded(self, results: Results) -> Results:
        return results.model_copy(update={"budget": self.outcome})

    def after_step(self, trainer: Trainer) -> None:
        state = trainer.state
        if state.finished or state.step % self.interval:
            return
        count = len(self.ordinary.text.blocks)
        few = range(0, count, max(1, count // BETWEEN_STEPS))
        with trainer.aside():
            apart = self.ordinary.divergence(few)
        change = min(MOST, max(1 / MOST, (apart / self.most) ** 2))
        self.anchor.weight = min(self._highest, max(LOWEST, self.anchor.weight * change))
        record = BudgetRecord(state.step, apart, self.anchor.weight)
        self.records.append(record)
        trainer.emit(record)

    def after_training(self, trainer: Trainer) -> None:
        """Before anything is measured or written of the result."""
        every = range(len(self.ordinary.text.blocks))
        before = self.validation.loss_after(self.validation.result_step)
        loss = None if before is None else before.loss
        with trainer.aside():
            full = self.ordinary.divergence(every)
            strength, apart = (1.0, full) if full <= self.most else self._strength(trainer, every)
        if strength < 1.0:
            trainer.trainable.weaken(strength)
            self.validation.measure_again(trainer)
        self.outcome = outcome = KeptBudget(
            forget_at_most=self.most, divergence=apart, strength=strength, divergence_at_full_strength=full,
            validation_loss_at_full_strength=loss,
        )  # fmt: skip
        trainer.emit(StatusMessage(self._summary(outcome)))

    def _strength(self, trainer: Trainer, blocks: Sequence[int]) -> tuple[float, float]:
        """By halving: divergence grows with the strength."""
        low, high, apart = 0.0, 1.0, 0.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            with trainer.trainable.scaled(middle):
                measured = self.ordinary.divergence(blocks)
            if measured <= self.most:
                low, apart = middle, measured
            else:
                high = middle
        return low, apart

    def _summary(self, outcome: KeptBudget) -> str:
        line = (
            f"forgetting on ordinary text: {outcome.divergence:.4f} nats per token, within the budget of {self.most:g}"
        )
        if outcome.strength == 1.0:
            return line
        line += (
            f". The change was scaled to {outcome.strength:.3f} for that; at full strength it is "
            f"{outcome.divergence_at_full_strength:.4f}"
        )
        after = self.validation.loss_after(self.validation.result_step)
        if after is not None and outcome.validation_loss_at_full_strength is not None:
            line += f" and the validation loss is {outcome.validation_loss_at_full_strength:.4f}, not {after.loss:.4f}"
        return line
