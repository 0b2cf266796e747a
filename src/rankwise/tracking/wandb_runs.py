"""Weights & Biases: files for `wandb sync` in the run's folder, unless WANDB_MODE=online chooses the network.

Without the network a run that goes on is written anew from its own log, under the same id. With it, the run of W&B
continues after its last step.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwise.tracking.tracker import Known, TrackedRun

OFFLINE = "offline"
ENDS = {"finished": 0, "failed": 1, "interrupted": 130}


class WandbRuns:
    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb  # pyright: ignore[reportMissingImports]

        mode: Any = os.environ.get("WANDB_MODE") or OFFLINE
        own = hashlib.sha256(f"{run.name} {run.started}".encode()).hexdigest()[:12]
        self._library, self._online = wandb, mode not in (OFFLINE, "dryrun", "disabled")
        folder = run.tracking / "wandb"
        if not self._online:
            _forget(list(folder.glob(f"{OFFLINE}-run-*-{own}")))
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=run.project, name=run.name, id=own, mode=mode, dir=str(run.tracking.resolve()), reinit="create_new",
            config={**run.settings, **run.facts}, resume="allow" if self._online else None,
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, disable_code=True, save_code=False,
                x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True, x_save_requirements=False,
                login_timeout=1,
            ),
        )  # fmt: skip

    def known(self) -> Known:
        return Known(floor=self._run.step - 1 if self._online and self._run.resumed else -1)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def log_histogram(self, name: str, values: Sequence[int], step: int) -> None:
        self._run.log({name: self._library.Histogram(list(values))}, step=step)

    def log_result(self, numbers: Mapping[str, float], words: Mapping[str, str], step: int) -> None:
        self._run.summary.update({**numbers, **words})

    def close(self, status: str) -> None:
        self._run.finish(exit_code=ENDS.get(status, 1))


def _forget(earlier: Sequence[Path]) -> None:
    """Remove the folders of this run. Their names count seconds, and W&B writes nothing into one of the same name."""
    for folder in earlier:
        begun = folder.stat().st_mtime
        shutil.rmtree(folder)
        time.sleep(min(2.0, max(0.0, begun + 1.1 - time.time())))
