"""An adapter that an estimator trains as `rankwise train` does, kept as the files of the run's result; and advice: is a
short adapter better than the probe on rows that neither of them saw?"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from threading import RLock
from typing import Any, Self

import numpy as np

from rankwise.commands.advise import advise as advise_command
from rankwise.errors import DataError
from rankwise.python.train import experiment_with, train
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.advice import Advice, LabelAdvice
from rankwise.runs.records import StatusMessage, WarningMessage
from rankwise.sklearn.probe import LinearProbe
from rankwise.sklearn.vectors import Reader, absolute, open_reader
from rankwise.system.files import write_atomic
from rankwise.training.advising import AdviceSide, LabelAdvising, Untrained

LOG = logging.getLogger("rankwise.sklearn")
FOLDER, RUN = "adapter", "estimator"
THERE = RLock()
"""All threads have one working folder, so they train one after the other."""


def log(event: Any) -> None:
    """The sentences and warnings of a training, to the log."""
    if isinstance(event, StatusMessage | WarningMessage):
        LOG.log(logging.WARNING if isinstance(event, WarningMessage) else logging.INFO, event.text)


@contextmanager
def workplace(folder: str | None) -> Iterator[None]:
    """The folder in which runs/ lies, or one that is gone afterwards."""
    with THERE, nullcontext(folder) if folder else tempfile.TemporaryDirectory() as place:
        Path(place).mkdir(parents=True, exist_ok=True)
        with chdir(place):
            yield


def settings_of(estimator: Any, items: Sequence[Any], targets: Any) -> dict[str, Any]:
    """As `rankwise.train` takes them."""
    names = estimator.names and [name.strip() for name in estimator.names]
    if names is not None and len(set(names)) < len(names):
        raise DataError("some labels of y differ only in spaces around them, which no adapter learns. Remove these.")
    labels = targets.tolist() if names is None else [names[at] for at in targets]
    rows = [{estimator.reads.column: one, "label": label} for one, label in zip(items, labels, strict=True)]
    cut = {"too_long": "truncate", "max_length": estimator.max_length} if estimator.max_length else {}
    return {
        "data": rows, "model": {"name": absolute(estimator.base), "dtype": "float32"}, "seed": estimator.random_state,
        "classification": {"targets": estimator.kind.targets}, **cut, **(estimator.settings or {}),
    }  # fmt: skip


@dataclass
class Tuned:
    files: Mapping[str, bytes]
    reads: type[Reader]
    base: str
    max_length: int
    advice = "An adapter was trained; compare its score on other rows with that of a probe."

    @classmethod
    def of_files(cls, folder: Path, base: str, estimator: Any) -> Self:
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        return cls(files, estimator.reads, base, estimator.max_length)

    @classmethod
    def fit(cls, estimator: Any, items: Sequence[Any], targets: Any) -> Self:
        with THERE:
            settings, base = settings_of(estimator, items, targets), absolute(estimator.base)
            with workplace(estimator.folder):
                run = train(run=RUN, restart=True, callback=log, **settings)
                return cls.of_files(run.tuned.artifact.result, base, estimator)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "reader"}

    @cached_property
    def reader(self) -> Reader:
        with tempfile.TemporaryDirectory() as folder:
            self.write(Path(folder))
            return open_reader(self.reads, self.base, str(Path(folder) / FOLDER), self.max_length)

    def outputs(self, items: Sequence[Any], names: Sequence[str] | None) -> Any:
        found, classes = self.reader.outputs(items), self.reader.objective.targets.classes
        return found[:, 0] if names is None else found[:, [classes.index(name.strip()) for name in names]]

    def write(self, folder: Path) -> dict[str, Any]:
        (folder / FOLDER).mkdir()
        for name, content in self.files.items():
            write_atomic(folder / FOLDER / name, content)
        return {}

    @classmethod
    def opened(cls, folder: Path, record: Mapping[str, Any], estimator: Any) -> Self:
        return cls.of_files(folder / FOLDER, absolute(estimator.base), estimator)


class ProbeAdvice(LabelAdvice):
    learner, fitted, advised = "the loss of the probe", "probe", "keep the probe"


@dataclass
class ProbeAdvising(LabelAdvising):
    """With the estimator's own probe, fitted on all rows that are not held out, in the place of a fitted head."""

    estimator: Any = field(kw_only=True)
    items: Sequence[Any] = field(kw_only=True)
    targets: Any = field(kw_only=True)
    """The target of each item."""
    advice = ProbeAdvice

    def untrained(self) -> Untrained:
        rows = self.drawn(len(self.prepared.trained))
        return Untrained(self._probed(rows), len(rows), self._probed(rows[: len(rows) // 2]))

    def _probed(self, rows: Sequence[Tokens]) -> AdviceSide:
        learned, measured = ([int(str(row.name).rpartition(":")[2]) - 1 for row in part] for part in (rows, self.rows))
        probe = LinearProbe.fit(self.estimator, [self.items[at] for at in learned], self.targets[learned])
        outputs, classes = probe.outputs([self.items[at] for at in measured], None), self.objective.targets.classes
        if not classes:
            return self._side(outputs[:, None])
        shares, names = np.zeros((len(measured), len(classes))), self.estimator.names
        shares[:, [classes.index(names[at]) for at in probe.linear.classes_]] = outputs
        return self._side(shares)


def advise(estimator: Any, items: Sequence[Any], targets: Any) -> Advice:
    settings = settings_of(estimator, items, targets)
    model, data = settings.pop("model"), settings.pop("data")
    with workplace(estimator.folder):
        experiment = experiment_with(model, data, "advise", settings, log, "advise")
        advising = partial(ProbeAdvising, estimator=estimator, items=items, targets=targets)
        return advise_command(experiment, callback=log, advising=advising)
