"""TensorBoard: event files in the run's folder, so that `tensorboard --logdir runs` shows all runs.

A run that goes on writes one more file, which begins by taking back the steps after the last one of the metrics log.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwise.tracking.tracker import Known, TrackedRun

ALL = 0
"""As a bound of TensorBoard's reader: nothing is left out."""


class TensorBoardFiles:
    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = run.tracking / "tensorboard"
        self._newest = newest_in(folder, run.last_step)
        goes_on = bool(self._newest)
        self._writer = SummaryWriter(str(folder), purge_step=run.last_step + 1 if goes_on else None, flush_secs=5)
        if not goes_on:
            settings = {name: value for name, value in run.settings.items() if value != ""}
            for summary in hparams(settings, {"train/loss": 0, "eval/loss": 0})[:2]:
                self._file.add_summary(summary)
            self._writer.add_text("settings", table(run.settings), 0)
            self._writer.add_text("facts", table(run.facts), 0)

    @property
    def _file(self) -> Any:
        return self._writer.file_writer

    def known(self) -> Known:
        return Known(self._newest)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def log_histogram(self, name: str, values: Sequence[int], step: int) -> None:
        import numpy

        edges = numpy.arange(max(values) + 2) - 0.5  # one bar for each rank
        self._writer.add_histogram(name, numpy.array(values), step, bins=edges.tolist())

    def log_result(self, numbers: Mapping[str, float], words: Mapping[str, str], step: int) -> None:
        self.log({name: value for name, value in numbers.items() if math.isfinite(value)}, step)
        self._writer.add_text("result", table(words), step)

    def close(self, status: str) -> None:
        from torch.utils.tensorboard.summary import hparams

        if status == "finished":
            self._file.add_summary(hparams({}, {})[2])  # the end of the session
        self._writer.close()


def newest_in(folder: Path, last_step: int) -> dict[str, tuple[int, float]]:
    """The newest step and value of each number up to a step, as TensorBoard's own reader reads the files."""
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # pyright: ignore[reportMissingImports]

    events = EventAccumulator(str(folder), {"scalars": ALL, "histograms": ALL, "tensors": ALL})
    events.Reload()
    tags = events.Tags()
    every = {name: [(one.step, one.value) for one in events.Scalars(name)] for name in tags["scalars"]}
    every |= {name: [(one.step, math.nan) for one in events.Histograms(name)] for name in tags["histograms"]}
    upto = {name: [one for one in points if one[0] <= last_step] for name, points in every.items()}
    return {name: points[-1] for name, points in upto.items() if points}


def table(values: Mapping[str, Any]) -> str:
    """A table in Markdown; signs that would end a cell are escaped."""
    lines = (
        f"| {name} | {' '.join(str(value).split()).replace('|', chr(92) + '|')} |" for name, value in values.items()
    )
    return "\n".join(("| name | value |", "|---|---|", *lines))
