"""Score a run, a model, or a model against another: numbers with intervals, item by item, and what was forgotten.

A run is evaluated beside its own base, which is the same model with the adapter off. A merged model, or any other, can
be held `against` the one it came from. The result goes into the run's folder, where reports and comparisons find it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import EvaluationError, RunError, SpecError
from rankwise.evaluation.intervals import difference
from rankwise.evaluation.items import Items, items_of, items_of_documents
from rankwise.evaluation.metrics import METRICS
from rankwise.evaluation.scoring import side
from rankwise.models.loaded import LoadedModel
from rankwise.models.loading import load
from rankwise.run.directory import RunDirectory, find_run
from rankwise.run.evaluations import Difference, Evaluation, Sample, Side, evaluation_path, stamped, write_evaluation
from rankwise.run.records import Announce, Said, silent
from rankwise.spec.models import ModelSpec
from rankwise.spec.tasks import TaskSpec, task_named
from rankwise.verbs.ask import open_for_asking
from rankwise.verbs.methods import model_of
from rankwise.verbs.preparing import Writing, prepare

SAMPLES = 20
TOGETHER = 16
HELD_OUT = "held-out"


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and what it is held against: `base` gives that for as long as it is asked."""

    name: str
    model: LoadedModel
    run: RunDirectory | None
    against: str | None
    base: Callable[[], Any] | None


def evaluate(
    target: str, task: str | TaskSpec | None = None, *, data: str | None = None, rows: int | None = None,
    against: str | None = None, base: bool = True, together: int = TOGETHER, dtype: str = "auto",
    out: Path | None = None, announce: Announce = silent, force_base: bool = False, trust_code: str | None = None,
) -> Evaluation:  # fmt: skip
    """Evaluate a run (by name or folder) or a model. Without a task it is the loss on what the run held out."""
    subject = open_subject(target, against, base=base, dtype=dtype, announce=announce, force_base=force_base,
                           trust_code=trust_code)  # fmt: skip
    return evaluated(subject, task, data=data, rows=rows, together=together, out=out, announce=announce)


def evaluated(
    subject: Subject, task: str | TaskSpec | None, *, data: str | None = None, rows: int | None = None,
    together: int = TOGETHER, out: Path | None = None, announce: Announce = silent,
) -> Evaluation:  # fmt: skip
    asked, items = _asked(subject, task, data, rows, announce)
    if items.too_long:
        announce(Said(f"{items.too_long:,} rows are longer than the model's context and are left out"))

    def scored(model: LoadedModel, who: str) -> Side:
        return side(asked, items.items, model, announce, together=together, who=who)

    tuned = scored(subject.model, subject.name)
    base = None
    if subject.base is not None:
        with subject.base() as other:
            base = scored(other, str(subject.against))
    found = Evaluation(
        task=asked.task, n=len(items.items), items_sha256=items.sha256, data=Path(asked.data).name,
        model=subject.name, against=subject.against, tuned=tuned, base=base, differences=_differences(tuned, base),
        retention=None, samples=_samples(items, tuned, base), settings=_settings(asked, subject.model), **stamped(),
    )  # fmt: skip
    place = out or (evaluation_path(subject.run, asked.task) if subject.run is not None else None)
    if place is not None:
        write_evaluation(place, found)
        announce(Said(f"written to {place}"))
    return found


def open_subject(
    target: str, against: str | None = None, *, base: bool = True, dtype: str = "auto", announce: Announce = silent,
    force_base: bool = False, trust_code: str | None = None,
) -> Subject:  # fmt: skip
    run = find_run(target)
    if run is None:
        model = load(_spec(ModelSpec(name=target, trust_code=trust_code), dtype), announce)
        return Subject(target, model, None, against, _other(model, against, dtype, announce) if against else None)
    if against is not None:
        raise SpecError([f'"{target}" is a run, and a run is held against its own base; leave out --against.'])
    asked = open_for_asking(
        target, announce, force_base=force_base, trust_code=trust_code, held=_spec(model_of(run, trust_code), dtype)
    )

    @contextmanager
    def without() -> Iterator[LoadedModel]:
        with asked.side(base=True):
            yield asked.model

    return Subject(run.folder.name, asked.model, run, run.manifest().base_model.name, without if base else None)


def _spec(spec: ModelSpec, dtype: str) -> ModelSpec:
    """In float32 on a processor, where answers do not depend on how many are written at once."""
    given = ModelSpec(name=spec.name, dtype=dtype) if dtype != "auto" else None  # pyright: ignore[reportArgumentType]
    exact = "float32" if given is None and _on_processor(spec) else spec.dtype
    return spec.model_copy(update={"dtype": given.dtype if given is not None else exact})


def _on_processor(spec: ModelSpec) -> bool:
    from rankwise.models.precision import choose_precision

    return choose_precision(spec).device.type == "cpu"


def _other(model: LoadedModel, against: str, dtype: str, announce: Announce) -> Callable[[], Any]:
    @contextmanager
    def loaded() -> Iterator[LoadedModel]:
        other = load(_spec(ModelSpec(name=against), dtype), announce)
        if other.tokenizer.identity != model.tokenizer.identity:
            raise EvaluationError(f'"{against}" has another tokenizer, so the same items are not the same tokens.')
        yield other

    return loaded


def _asked(
    subject: Subject, task: str | TaskSpec | None, data: str | None, rows: int | None, announce: Announce
) -> tuple[TaskSpec, Items]:
    if task is None and data is not None:
        task = data
        data = None
    if task is not None:
        spec = task if isinstance(task, TaskSpec) else task_named(task, data, rows)
        return spec, items_of(spec, subject.model)
    if subject.run is None:
        raise SpecError(["which task? Give --task NAME, a YAML file, or a file of rows."])
    model, experiment = subject.model, subject.run.experiment()
    writing = Writing(model.tokenizer, model.template, model.source.name, model.context_length)
    held_out = prepare(experiment.data, writing, announce).measured_rows
    if not len(held_out):
        raise RunError(
            f'run "{subject.name}" held out no rows. Give --task, with a name, a YAML file or a file of rows.'
        )
    kept = [held_out[at] for at in range(len(held_out))][:rows]
    return TaskSpec(task=HELD_OUT, data=subject.run.manifest().data.path), items_of_documents(kept, model)


def _differences(tuned: Side, base: Side | None) -> dict[str, Difference]:
    if base is None:
        return {}
    return {
        metric: difference(METRICS[metric], base.scores[metric].sums, one.sums) for metric, one in tuned.scores.items()
    }


def _samples(items: Items, tuned: Side, base: Side | None) -> list[Sample]:
    if tuned.answers is None:
        return []
    return [
        Sample(
            prompt=item.prompt, wanted=item.wanted, tuned=tuned.answers[at],
            base=base.answers[at] if base is not None and base.answers is not None else None,
        )
        for at, item in enumerate(items.items[:SAMPLES])
    ]  # fmt: skip


def _settings(task: TaskSpec, model: LoadedModel) -> dict[str, Any]:
    said = task.model_dump(mode="json", exclude={"data", "task"}, exclude_defaults=True)
    return said | {
        "dtype": model.facts.dtype, "fingerprint": model.facts.fingerprint, "template": model.template.identity,
        "tokenizer": model.tokenizer.identity,
    }  # fmt: skip
