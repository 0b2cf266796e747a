"""What validation adds to a plan: the tokens that are read, and the answers that are written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rankwise.config.experiment import Planned
from rankwise.planning import batches
from rankwise.planning.batches import UNKNOWN, validation_work
from rankwise.planning.estimate import Estimate
from rankwise.planning.rows import Drawn, PlannedRows
from rankwise.planning.tasks import CLASSIFIER, TASKS
from rankwise.planning.time import Probe, Step, duration
from rankwise.training import validation_prompts

COUNT, ALL, LEARNED = (Estimate.exactly(amount) for amount in (280, 28_000, 14_000))
ROWS = PlannedRows(COUNT, ALL, LEARNED, 0.0, 100, 100, (Drawn((100,), 50, 400),) * 280, exact=True, held_out=60)

NONE = replace(ROWS, held_out=0)


def config(held_out: int = 60, model: Any = "smollm2-135m", **settings) -> Planned:
    data = {"path": "rows.jsonl", "held_out": held_out}
    return Planned.model_validate({"model": model, "data": data, "validation": settings})


def test_the_numbers_are_those_of_a_training() -> None:
    for name in ("SAMPLES", "LONGEST", "UNKNOWN"):
        assert getattr(batches, name) == getattr(validation_prompts, name)


def test_without_validation_rows_nothing_is_read_or_answered() -> None:
    assert validation_work(config(0), NONE, 100, 800) == (0.0, 0.0)
    assert validation_work(config(0, prompts=("Hello",)), NONE, 100, 800) == (0.0, 2 * UNKNOWN)


def test_rows_are_read_before_after_and_as_often_as_is_asked_for() -> None:
    assert validation_work(config(prompts=()), ROWS, 100, 800)[0] >= 2 * 60 * 100
    often = 21 * 60 * 100
    assert validation_work(config(prompts=(), steps=5), ROWS, 100, 800) == (often, 0)
    assert validation_work(config(steps=5), ROWS, 100, 800) == (often, 2 * (1.5 * 50 + 1))


def test_a_classifier_writes_no_answers_and_reads_its_rows_twice_in_each_pass() -> None:
    quiet, _ = validation_work(config(prompts=(), steps=5), ROWS, 100, 800)
    assert validation_work(config(steps=5), ROWS, 100, 800, TASKS[CLASSIFIER]) == (2 * quiet, 0)


def test_what_is_read_beside_the_steps_takes_its_time_once() -> None:
    step, probe = Step(1e9, 100.0), Probe(1.0, 0.01, "here", "now")
    told = duration(step, 10, probe, validation=Step(1e9, 50.0), answering=3.0).total
    assert told.likely == pytest.approx(10 * 2.0 + 0.5 + 3.0)
