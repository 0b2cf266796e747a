"""The disk space that a run takes at most, while it trains.

    result + (keep_checkpoints + 1) x checkpoint + snapshots x trained weights

One checkpoint more than is stored is there while it is written, and two others where a run that diverges goes back.
How many a run writes depends on the time that its steps take, so all are counted unless none is written but at a stop.
With validation.keep at `best`, each checkpoint needs the best snapshot before it, and two more are there while one is
written. The weights that are trained take 4 bytes a parameter, and a checkpoint has the optimizer's two averages beside
them, and those of the method. Logs and reports are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from rankwise.config.training import TrainingConfig
from rankwise.config.validation import ValidationConfig

EXACT = 4
"""Bytes of a number in float32."""
SLOW_DISK = 250e6
"""Bytes that one writes in a second."""


@dataclass(frozen=True)
class Disk:
    result: int
    checkpoint: int
    """Bytes of each."""
    checkpoints: int
    """Their number while one is written; 0 where the run writes none by itself."""
    snapshots: int
    """The number of copies of the trained weights that may turn out to be the best."""

    @classmethod
    def of(
        cls, trained: int, checkpoint: int, training: TrainingConfig, validation: ValidationConfig, steps: int
    ) -> Disk:  # fmt: skip
        """`trained` is a number of parameters."""
        extra = 2 if training.on_divergence == "back-off" else 0
        stored = training.keep_checkpoints + extra if (training.checkpoint_steps or 1) < steps else 0
        snapshots = stored + 2 if validation.keep == "best" else 0
        return cls(EXACT * trained, checkpoint, stored + 1 if stored else 0, snapshots)

    @property
    def total(self) -> int:
        return self.result * (1 + self.snapshots) + self.checkpoint * self.checkpoints
