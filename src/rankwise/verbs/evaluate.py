"""Score a run, a model, or a model against another: numbers with intervals, item by item, and what was forgotten.

A run is evaluated beside its own base, which is the same model with the adapter off. A merged model, or any other, can
be held `against` the one it came from. The result goes into the run's folder, where reports and comparisons find it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import SpecError
from rankwise.evaluation.harness import PREFIX, HarnessTask
from rankwise.evaluation.intervals import difference
from rankwise.evaluation.items import Items, items_of, items_of_documents
from rankwise.evaluation.metrics import METRICS
from rankwise.evaluation.retention import retention
from rankwise.evaluation.sides import Sides, of_two, with_and_without
from rankwise.evaluation.task import OwnTask, Task
from rankwise.evaluation.text import refuse_trained_on, text_for
from rankwise.models.loaded import LoadedModel
from rankwise.models.loading import load
from rankwise.run.cautions import HELD_OUT
from rankwise.run.directory import RunDirectory, find_run
from rankwise.run.evaluations import (
    Difference,
    Evaluation,
    Retention,
    Side,
    evaluation_path,
    stamped,
    write_evaluation,
)
from rankwise.run.records import Announce, Said, silent
from rankwise.spec.models import ModelSpec
from rankwise.spec.tasks import TaskSpec, task_named
from rankwise.verbs.ask import open_for_asking
from rankwise.verbs.held import held_to_measure
from rankwise.verbs.measured_rows import rows_to_measure
from rankwise.verbs.methods import model_of
from rankwise.verbs.page import write_page

TOGETHER = 16


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and what it is held against: `base` gives that for as long as it is asked, `sides` both."""

    name: str
    model: LoadedModel
    run: RunDirectory | None
    against: str | None = None
    base: Callable[[], AbstractContextManager[LoadedModel]] | None = None
    sides: Sides | None = None


def evaluate(
    target: str, task: str | TaskSpec | None = None, *, data: str | None = None, rows: int | None = None,
    against: str | None = None, base: bool = True, with_retention: bool = True, text: str | None = None,
    together: int = TOGETHER, dtype: str = "auto", out: Path | None = None, announce: Announce = silent,
    force_base: bool = False, trust_code: str | None = None,
) -> Evaluation:  # fmt: skip
    """Evaluate a run (by name or folder) or a model. Without a task it is the loss on what the run held out. What is
    kept of the base is measured on `text` (evaluation/text.py), where there is something to hold it against."""
    subject = open_subject(target, against, base=base, dtype=dtype, announce=announce, force_base=force_base,
                           trust_code=trust_code)  # fmt: skip
    asked = asked_of(subject, task, data, rows, together, announce)
    kept = _retention(subject, text, announce) if with_retention else None
    return evaluated(subject, asked, kept, out=out, announce=announce)


def evaluated(
    subject: Subject, asked: Task, kept: Retention | None = None, *, out: Path | None = None,
    announce: Announce = silent,
) -> Evaluation:  # fmt: skip
    tuned = asked.side(subject.model, subject.name, announce)
    base = None
    if subject.base is not None:
        with subject.base() as other:
            base = asked.side(other, str(subject.against), announce)
    n, items = asked.facts()
    found = Evaluation(
        task=asked.name, n=n, items_sha256=items, data=asked.data, model=subject.name, against=subject.against,
        tuned=tuned, base=base, differences=_differences(tuned, base), retention=kept,
        samples=asked.samples(tuned, base), settings=asked.settings | _held(subject.model), **stamped(),
    )  # fmt: skip
    place = out or (evaluation_path(subject.run, asked.name) if subject.run is not None else None)
    if place is not None:
        write_evaluation(place, found)
        announce(Said(f"written to {place}"))
    if subject.run is not None and out is None:
        write_page(subject.run, announce)
    return found


def open_subject(
    target: str, against: str | None = None, *, base: bool = True, dtype: str = "auto", announce: Announce = silent,
    force_base: bool = False, trust_code: str | None = None,
) -> Subject:  # fmt: skip
    run = find_run(target)
    if run is None:
        model = load(held_to_measure(ModelSpec(name=target, trust_code=trust_code), dtype), announce)
        return _beside(model, target, against, dtype, announce) if against else Subject(target, model, None)
    if against is not None:
        raise SpecError([f'"{target}" is a run, and a run is held against its own base; leave out --against.'])
    asked = open_for_asking(
        target,
        announce,
        force_base=force_base,
        trust_code=trust_code,
        held=held_to_measure(model_of(run, trust_code), dtype),
    )

    @contextmanager
    def without() -> Iterator[LoadedModel]:
        with asked.side(base=True):
            yield asked.model

    name, against = run.folder.name, run.manifest().base_model.name
    if not base:
        return Subject(name, asked.model, run)
    return Subject(name, asked.model, run, against, without, with_and_without(asked.tuned))


def _beside(model: LoadedModel, target: str, against: str, dtype: str, announce: Announce) -> Subject:
    other = load(held_to_measure(ModelSpec(name=against), dtype), announce)
    return Subject(target, model, None, against, lambda: nullcontext(other), of_two(other, model))


def _retention(subject: Subject, text: str | None, announce: Announce) -> Retention | None:
    if subject.sides is None:
        return None
    read = text_for(subject.model, text)
    if subject.run is not None:
        refuse_trained_on(read, subject.run.receipt())
    return retention(subject.sides, read, announce)


def asked_of(
    subject: Subject, task: str | TaskSpec | None, data: str | None, rows: int | None, together: int,
    announce: Announce,
) -> Task:  # fmt: skip
    if isinstance(task, str) and task.startswith(PREFIX):
        return HarnessTask(task.removeprefix(PREFIX), rows, together)
    spec, items = _items(subject, data if task is None else task, None if task is None else data, rows, announce)
    if items.too_long:
        announce(Said(f"{items.too_long:,} rows are longer than the model's context and are left out"))
    return OwnTask(spec, items, together)


def _items(
    subject: Subject, task: str | TaskSpec | None, data: str | None, rows: int | None, announce: Announce
) -> tuple[TaskSpec, Items]:
    if task is not None:
        spec = task if isinstance(task, TaskSpec) else task_named(task, data, rows)
        return spec, items_of(spec, subject.model)
    if subject.run is None:
        raise SpecError(["which task? Give --task NAME, a YAML file, or a file of rows."])
    held_out = rows_to_measure(subject.run, subject.model, None, announce)
    spec = TaskSpec(task=HELD_OUT, data=held_out.about)
    return spec, items_of_documents(list(held_out.documents)[:rows], subject.model)


def _differences(tuned: Side, base: Side | None) -> dict[str, Difference]:
    if base is None:
        return {}
    return {
        metric: difference(METRICS[metric], base.scores[metric].sums, one.sums) for metric, one in tuned.scores.items()
    }


def _held(model: LoadedModel) -> dict[str, Any]:
    facts = model.facts
    return {
        "dtype": facts.dtype, "fingerprint": facts.fingerprint, "template": model.template.identity,
        "tokenizer": model.tokenizer.identity,
    }  # fmt: skip
