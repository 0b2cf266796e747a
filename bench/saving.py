"""What checkpoints cost: the processor time of saving beside that of the steps between two checkpoints.

    python bench/saving.py --data ROWS [--steps 5] [--every 2] [--json] [--out TITLE]

The starter SmolLM2-135M is trained with the settings of `rankwise train`. At the default cadence, a run of 101 steps
has a checkpoint every 10 steps, and a longer one saves more seldom, so the share is that of 10 steps. Saving is
everything that the hook does: finding NaN, writing, hashing, flushing to the disk, removing an older checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from telling import parser_of, tell

from rankwise.commands.train import train
from rankwise.config.experiment import Experiment
from rankwise.runs.records import Event, StepRecord
from rankwise.training.hooks import SaveCheckpoints
from rankwise.training.trainer import Trainer

MOST = 10
"""Steps between two checkpoints at the default cadence, at the least."""


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--every", type=int, default=2)
    chosen = parser.parse_args()
    tell(chosen, measured(chosen.data.absolute(), chosen.steps, chosen.every), show)


def measured(data: Path, steps: int, every: int) -> dict[str, Any]:
    saving, sizes, save = list[float](), list[int](), SaveCheckpoints.after_step

    def timed(self: SaveCheckpoints, trainer: Trainer) -> None:
        began, before = time.process_time(), self.run.steps_saved
        save(self, trainer)
        if self.run.steps_saved != before:
            saving.append(time.process_time() - began)
            folder = self.run.checkpoints.path(trainer.state.step)
            sizes.append(sum(file.stat().st_size for file in folder.iterdir()))

    SaveCheckpoints.after_step = timed
    training = {"steps": steps, "checkpoint_steps": every}
    experiment = Experiment(model="smollm2-135m", data=str(data), run="saving", training=training)  # pyright: ignore
    ends: list[float] = []

    def hear(event: Event) -> None:
        if isinstance(event, StepRecord):
            ends.append(time.process_time())

    with TemporaryDirectory() as folder, contextlib.chdir(folder):
        train(experiment, callback=hear)
    per_step = (ends[-1] - ends[0] - sum(saving)) / (len(ends) - 1)
    each = sum(saving) / len(saving)
    return {
        "steps": steps, "every": every, "checkpoints": len(saving), "checkpoint_bytes": max(sizes),
        "saving_seconds": each, "step_seconds": per_step, "share": each / (MOST * per_step),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }  # fmt: skip


def show(results: dict[str, Any]) -> None:
    print("a checkpoint of {checkpoint_bytes:,} bytes takes {saving_seconds:.3f} s, a step {step_seconds:.2f} s of "
          "processor time; every 10 steps that is {share:.2%}".format(**results))  # fmt: skip


if __name__ == "__main__":
    main()
