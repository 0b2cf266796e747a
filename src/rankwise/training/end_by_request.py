"""A training that is asked to end, with a result: the step that it is at becomes its last."""

from __future__ import annotations

from dataclasses import dataclass

from rankwise.runs.directory import BY_REQUEST, RunDirectory, forget_end_request, is_asked_to_end
from rankwise.runs.records import StatusMessage, WarningMessage
from rankwise.training.trainer import Hook, Trainer
from rankwise.training.validation import Validation


@dataclass(frozen=True)
class EndByRequest(Hook):
    """Comes before the validation, which then measures the last step. In a run of one process."""

    run: RunDirectory
    validation: Validation

    def after_step(self, trainer: Trainer) -> None:
        state = trainer.state
        if state.finished or not is_asked_to_end(self.run):
            return
        forget_end_request(self.run)
        state.ended = True
        self.validation.stopped_early = f"{BY_REQUEST} after step {state.step} of {state.steps}"
        trainer.emit(StatusMessage(f"ended {self.validation.stopped_early}"))
        if (ranks := trainer.trainable.end_early(state.step - 1, state.optimizer)) is not None:
            trainer.emit(ranks)
            trainer.emit(WarningMessage(
                f"the run was ended after step {state.step}, before its ranks were decided: the adapter has "
                f"{sum(ranks.ranks.values()):,} ranks, more than its budget"
            ))  # fmt: skip
