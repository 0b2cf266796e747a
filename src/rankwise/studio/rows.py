"""What the table of runs shows of each run, read anew for each page, with losses remembered while their file stays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from rankwise.errors import RankwiseError
from rankwise.reporting.sparkline import bucket_means, sparkline
from rankwise.runs.directory import RunDirectory
from rankwise.runs.evaluations import evaluations_of
from rankwise.runs.listing import STARTING, ListedRun, listed, present_status, run_names
from rankwise.runs.metrics_log import read_metrics_log
from rankwise.runs.snapshot import forgetting_of
from rankwise.studio.pages import drawing

MOST_LOSSES = 240
Order = Literal["ascending", "descending"]


@dataclass(frozen=True)
class Row:
    """`status` is `starting` where a process has the run and has written no manifest yet."""

    run: ListedRun
    status: str
    forgetting: float | None
    losses: Sequence[float]

    @property
    def line(self) -> Any:
        return drawing(sparkline(self.losses))

    @property
    def when(self) -> str | None:
        return self.run.ended or self.run.started

    @property
    def loss(self) -> float | None:
        """On validation rows, where there are any."""
        return self.run.loss if self.run.validation_loss is None else self.run.validation_loss

    def matches(self, words: str) -> bool:
        texts = (self.run.name, self.run.model or "", self.run.method or "", self.status)
        return all(any(word in text.lower() for text in texts) for word in words.lower().split())


COLUMNS: dict[str, Callable[[Row], Any]] = {
    "name": lambda row: row.run.name.lower(),
    "status": lambda row: row.status,
    "model": lambda row: (row.run.model or "").lower(),
    "method": lambda row: row.run.method or "",
    "loss": lambda row: row.loss,
    "forgetting": lambda row: row.forgetting,
    "size": lambda row: row.run.bytes,
    "when": lambda row: row.when,
}
"""By which the table can be sorted: the heading, and its value in a row."""


def row_of(name: str) -> Row:
    run, directory = listed(name), RunDirectory.named(name)
    forgetting = None
    with suppress(RankwiseError, OSError):
        one = forgetting_of(evaluations_of(directory))
        forgetting = None if one is None or not math.isfinite(one.kl) else one.kl
    return Row(run, present_status(directory, run.status), forgetting, losses_of(directory.metrics))


def rows() -> list[Row]:
    return [row_of(name) for name in run_names()]


def in_order(chosen: Sequence[Row], by: str, order: Order) -> list[Row]:
    """Runs that are trained come first, and those without a value last."""
    value = COLUMNS[by]
    known = sorted((row for row in chosen if value(row) is not None), key=value, reverse=order == "descending")
    unknown = [row for row in chosen if value(row) is None]
    return sorted([*known, *unknown], key=lambda row: row.status not in ("running", STARTING))


def losses_of(metrics: Path) -> Sequence[float]:
    """The losses of the steps, as means where there are many; none where the log cannot be read."""
    try:
        facts = metrics.stat()
    except OSError:
        return ()
    return _losses(metrics.absolute(), facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=2000)
def _losses(metrics: Path, changed: int, size: int) -> Sequence[float]:
    try:
        records = read_metrics_log(metrics)
    except (RankwiseError, OSError):
        return ()
    steps = [one.get("loss") for one in records if isinstance(one, dict) and one.get("kind") == "step"]
    losses = [float(one) for one in steps if isinstance(one, int | float) and math.isfinite(one)]
    return bucket_means(losses, MOST_LOSSES)
