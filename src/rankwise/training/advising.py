"""Should one train at all? Three ways to answer held-out rows, measured in about a third of a run of 100 steps.

    base                        the model as it is; of a classifier, the frequencies of the labels
    base with examples          five training rows in the prompt; of a classifier, a linear probe of its features
    adapter                     a tenth of the run's steps, at least 20, with a schedule that decays within them
    adapter on a part           a quarter of these steps on a quarter of the rows, so each is seen as often
    adapter, other questions    the same answers behind the questions of other rows

The last says whether the answers depend on the questions at all (evaluation/swapped_pairs.py), and costs one pass over
the held-out rows, where a control adapter that is trained on shuffled answers would cost as much as the adapter itself.
The part is a point of the learning curve as epochs count it: more rows make a run longer, and both are in the slope. A
second point at half of the rows would cost half of an adapter more. A classifier's curve is that of its probe on half
of the rows, which costs nothing: a head begins at random, and in 20 steps its adapter has hardly left it. Held-out rows
are as many as the budget pays for, and no fewer than 24.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from rankwise.base.loaded import LoadedModel
from rankwise.config.experiment import Experiment
from rankwise.config.training import TrainingConfig
from rankwise.evaluation.advised_rows import AdvisedRows, AnsweredRows, LabelledRows, Side, labels_of
from rankwise.objectives.objective import Objective, classifier
from rankwise.rows.encoded.sequences import evenly
from rankwise.rows.preparation import Prepared
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.measured import Measurement
from rankwise.runs.records import Callback, ProgressUpdate, silent
from rankwise.training.short_runs import ShortRun, short_run

EXAMPLES, FEWEST_STEPS, TENTH, PART = 5, 20, 10, 4
BUDGET = 0.3
"""Of the full run's work."""
FORWARD, FORWARD_OF_LABELS = 0.5, 0.4
"""The work of measuring a row, as a share of the work of learning from it, by what advising took beside its steps
(lab/advising.md): of a language model, and of a classifier."""
FEWEST_ROWS, MOST_ROWS, MOST_PROBED = 24, 256, 320


@dataclass(frozen=True)
class Design:
    """How many steps and rows the short runs of `advise` take. Their cost is counted in steps of the full run."""

    full_steps: int
    steps: int
    part_steps: int
    """0 where there are too few rows or steps for a part."""
    part_rows: int
    measured: int
    probed: int
    """Training rows for a classifier's linear probe."""
    batch_size: int
    passes: int
    """Passes over the measured rows."""
    forward: float = FORWARD
    """The work of measuring a row."""

    @property
    def work(self) -> float:
        read = self.passes * self.measured + self.probed
        return self.steps + self.part_steps + self.forward * read / self.batch_size

    @property
    def doublings(self) -> float:
        """From the short run's length to the full one's."""
        return math.log2(self.full_steps / self.steps)


def design(objective: Objective, config: TrainingConfig, rows: int, held_out: int) -> Design:
    full, batch = config.total_steps(rows), config.rows_per_step(rows)
    steps = min(full, max(FEWEST_STEPS, math.ceil(full / TENTH)))
    return DESIGNS.get(objective.name, _of_answers)(full, steps, batch, rows, held_out)


def _of_answers(full: int, steps: int, batch: int, rows: int, held_out: int) -> Design:
    part_steps = steps // PART if rows >= 2 * PART else 0
    passes = 4 + bool(part_steps)
    room = (BUDGET * full - steps - part_steps) * batch / FORWARD
    measured = _measured(held_out, room / passes)
    return Design(full, steps, part_steps, max(1, rows // PART), measured, 0, batch, passes)


def _of_labels(full: int, steps: int, batch: int, rows: int, held_out: int) -> Design:
    passes = 2
    room = (BUDGET * full - steps) * batch / FORWARD_OF_LABELS
    probed = min(rows, MOST_PROBED, max(2 * FEWEST_ROWS, int(room / 2)))
    measured = _measured(held_out, (room - probed) / passes)
    return Design(full, steps, 0, max(1, rows // PART), measured, probed, batch, passes, FORWARD_OF_LABELS)


def _measured(held_out: int, room: float) -> int:
    return min(held_out, MOST_ROWS, max(FEWEST_ROWS, int(room)))


DESIGNS: Mapping[str, Callable[[int, int, int, int, int], Design]] = {"sequence-classification": _of_labels}
"""By the objective; that of every other is for answers."""


@dataclass(frozen=True)
class Sides:
    base: Side
    untrained: Side | None
    adapter: Side
    part: Side | None
    """What a part of the rows teaches: the adapter, or the probe of a classifier."""
    whole: Side
    """What it is compared with for the learning curve."""
    doublings: float
    """From the part to the whole."""
    unrelated: Side | None
    examples: int
    step_seconds: float
    seconds: float

    @property
    def doubling(self) -> Measurement | None:
        """What the loss fell by for each doubling of rows and steps."""
        if self.part is None:
            return None
        change = self.whole.against(self.part)
        value, low, high = (-one / self.doublings for one in (change.difference, change.high, change.low))
        return Measurement(value=value, low=low, high=high)


@dataclass
class Advising:
    """One measurement. `config` are the full run's settings with its steps and learning rate named."""

    experiment: Experiment
    config: TrainingConfig
    model: LoadedModel
    objective: Objective
    prepared: Prepared
    design: Design
    callback: Callback = silent
    examples: int = EXAMPLES
    _done: float = field(default=0.0, init=False)

    def measure(self) -> Sides:
        began, design, rows = time.perf_counter(), self.design, self.rows()
        base, known = rows.base(), rows.untrained()
        with short_run(self.short(design.steps, len(self.prepared.trained)), self.callback, self._step) as trained:
            adapter, unrelated = rows.adapter(), rows.unrelated()
        part, whole, doublings = known.of_half, known.side or adapter, 1.0
        if design.part_steps:
            with short_run(self.short(design.part_steps, design.part_rows), silent, self._step, trained.backend):
                part, whole, doublings = rows.adapter(), adapter, math.log2(PART)
        self._report(design.work)
        return Sides(
            base, known.side, adapter, part, whole, doublings, unrelated, known.examples, trained.seconds,
            time.perf_counter() - began,
        )  # fmt: skip

    def short(self, steps: int, rows: int) -> ShortRun:
        return ShortRun(self.experiment, self.config, self.model, self.objective, self.prepared, steps, rows)

    def rows(self) -> AdvisedRows:
        measured = list(evenly(self.prepared.measured_rows, self.design.measured))
        seed, report = self.config.seed, self.prepared.data_report
        classifies = classifier(self.objective)
        if classifies is None:
            return AnsweredRows(self.model, measured, self._drawn(self.examples), report.system, seed, self._read)
        trained = labels_of(self.prepared.trained_rows)
        return LabelledRows(self.model, classifies, measured, self._drawn(self.design.probed), trained, self._read)

    def _drawn(self, count: int) -> list[Tokens]:
        """Training rows that the seed draws."""
        rows = self.prepared.trained_rows
        order = np.random.default_rng([self.config.seed, 5]).permutation(len(rows))
        return [rows[int(number)] for number in order[:count]]

    def _read(self, rows: int) -> None:
        self._report(self._done + self.design.forward * rows / self.design.batch_size)

    def _step(self) -> None:
        self._report(self._done + 1.0)

    def _report(self, done: float) -> None:
        self._done = min(done, self.design.work)
        self.callback(ProgressUpdate("Advising", round(self._done, 1), round(self.design.work, 1), "steps' work"))
