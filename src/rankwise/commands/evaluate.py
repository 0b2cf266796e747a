"""Score a run, a model, or a model against another: numbers with intervals, item by item, and what was forgotten.

A run is evaluated beside its own base, which is the same model with the adapter off. A merged model, or any other, can
be held `against` the one it came from. The task is scored first, and each score is announced as soon as it is known;
what was forgotten is measured last. The result goes into the run's folder, where reports and comparisons find it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack, get_args

from rankwise.base.loaded import LoadedModel
from rankwise.commands.report import write_page
from rankwise.config.base import shown
from rankwise.config.data import COLUMN_SETTINGS, Constrained
from rankwise.config.tasks import (
    HELD_OUT,
    Score,
    TaskConfig,
    is_running_text,
    names_rows,
    refuse_taken,
    task_named,
    task_of_rows,
)
from rankwise.errors import ConfigError, RankwiseError, RunError, did_you_mean, first_line, some
from rankwise.evaluation.answer_table import AnswerTable, learned_rows
from rankwise.evaluation.feature_forgetting import OtherImages, compare_features, other_images
from rankwise.evaluation.forgetting import forgetting as forgetting_of
from rankwise.evaluation.forgetting import text_elsewhere
from rankwise.evaluation.harness import ASKED_TOGETHER, PREFIX, HarnessTask
from rankwise.evaluation.intervals import Looks, difference
from rankwise.evaluation.metrics import METRICS, ScoreFunction, metric_named
from rankwise.evaluation.pair_task import PairTask
from rankwise.evaluation.requests import (
    Requests,
    requests_of,
    requests_of_sequences,
    with_answers,
    with_fitting_scores,
)
from rankwise.evaluation.row_task import RowTask
from rankwise.evaluation.subject import FORGETTING, Subject, open_subject
from rankwise.evaluation.task import OwnTask, Task, base_scores
from rankwise.evaluation.task_documents import data_spec, drawn, identities
from rankwise.evaluation.text import BLOCKS, Text
from rankwise.evaluation.validation_rows import (
    Measurable,
    columns_of_run,
    databases_in,
    refuse_training_files,
    rows_to_measure,
)
from rankwise.inference.generate import BATCH_SIZE
from rankwise.methods.artifact import Opening, is_adapter, opening_in
from rankwise.objectives.preference import pair_loss_of
from rankwise.rows.files.in_memory import path_of
from rankwise.rows.files.output import SUFFIXES, check_name
from rankwise.runs.directory import find_run
from rankwise.runs.evaluations import (
    Evaluation,
    Forgetting,
    ModelScores,
    check_evaluation_place,
    evaluation_path,
    labels_text,
    read_evaluation,
    score_line,
    stamped,
    write_evaluation,
)
from rankwise.runs.manifest import now
from rankwise.runs.measured import Difference, FeatureForgetting
from rankwise.runs.records import Callback, StatusMessage, WarningMessage, silent
from rankwise.runs.snapshot import forgetting_in
from rankwise.system.files import check_place


def evaluate(
    target: str | os.PathLike[str], task: str | TaskConfig | None = None, *, data: Any = None, score: Any = None,
    rows: int | None = None, against: str | None = None, base: bool = True, forgetting: bool = True,
    text: str | None = None, blocks: int | None = None, batch_size: int | None = None, dtype: str = "auto",
    out: str | Path | None = None, callback: Callback = silent, images: str | None = None,
    constraint: Constrained = "own", **opening: Unpack[Opening],
) -> Evaluation:  # fmt: skip
    """Evaluate a run (name or folder), an adapter (folder) or a model. Without a task, it measures the loss on the
    run's held-out rows, or on `data` (a path or rows in memory), read like the run's own rows. `score` replaces the
    task's metrics (`"exact,json"` or a list), and may be or contain a function that takes an answer and its reference.
    `out` is a file for the result, or for a table with every answer and its scores.

    Forgetting is measured on `text` (evaluation/text.py) if there is a model to compare with: on as many blocks as a
    narrow interval needs (evaluation/intervals.py), or on a fixed number of `blocks`. Image classifiers use labelled
    `images` (evaluation/feature_forgetting.py). `constraint` applies to the answers of both models.
    """
    if task is not None and not isinstance(task, str | TaskConfig):
        task, data = None, task  # rows in the place of a task
    target, data, opening = os.fspath(target), None if data is None else path_of(data), opening_in(opening, evaluate)
    scores, table, out = ScoresAsked.of(score), *_places(out)
    compared = base if find_run(target) is not None or is_adapter(target) else bool(against)
    for flag, given in (("--text", text), ("--blocks", blocks), ("--other-images", images)):
        if given is not None and not (forgetting and compared):
            raise ConfigError(
                [f"{flag} needs two models to compare. Leave it out, or evaluate a run with its base, or a model "
                 "--against another, with --forgetting."]
            )  # fmt: skip
    if batch_size is not None and batch_size < 1:
        raise ConfigError([f"--batch-size is {batch_size}; it must be at least 1."])
    subject = open_subject(target, against, base=base, dtype=dtype, callback=callback, **opening)
    subject.refuse_options(task, text, blocks, scores.names or None)
    if compared and forgetting and (why := subject.objective.words.cannot.get(FORGETTING)) is not None:
        callback(StatusMessage(why))
    subject = replace(subject, constraint=constraint)
    others = _other_images(subject, images, with_forgetting=forgetting, callback=callback)
    asked = asked_of(subject, task, EvaluatedRows(data, rows, scores), batch_size, callback)
    if constraint != "own" and not (isinstance(asked, OwnTask) and asked.writes_answers):
        raise ConfigError([f"no answer is written for {asked.name}, so there is none to be held to anything; leave out "
                           "--schema, --choices, --regex, --grammar and --unconstrained."])  # fmt: skip
    _result_file(subject, asked, out)
    read = _text(subject, text, blocks, callback) if forgetting else None
    looks = None if blocks is not None else Looks()
    found = evaluated(subject, asked, read, looks, out=out, callback=callback, images=others)
    answers = AnswerTable(asked, data or (task if isinstance(task, str) and names_rows(task) else None))
    found.about(lambda: answers.items)
    if subject.run is not None and data is not None:
        learned, count = learned_rows(subject.run, data)
        if learned:
            callback(WarningMessage(
                f"{learned:,} of the {count:,} rows are in the files that the run was trained on, so these scores are "
                "not those of new rows"
            ))  # fmt: skip
    if table is not None:
        answers.write(table, found, callback)
        callback(StatusMessage(f"every answer is written to {table}"))
    return found


@dataclass(frozen=True)
class ScoresAsked:
    """Scores that are asked for by name, and functions of the user's."""

    names: tuple[str, ...] = ()
    functions: Mapping[str, ScoreFunction] = field(default_factory=dict)

    @classmethod
    def of(cls, scores: Any) -> ScoresAsked:
        listed: list[Any] = [scores] if isinstance(scores, str) or callable(scores) else list(scores or ())
        names = [name.strip() for one in listed if isinstance(one, str) for name in one.split(",")]
        given = [(_name_of(one), one) for one in listed if not isinstance(one, str)]
        functions = dict(given)
        known = get_args(Score)
        problems = [
            f'there is no score "{name}".{did_you_mean(name, known)} Scores are {some(known, 40)}.'
            for name in names if name not in known
        ]  # fmt: skip
        problems += [
            f"a score is {shown(one)}; give the name of a score, or a function of an answer and its reference."
            for one in functions.values() if not callable(one)
        ]  # fmt: skip
        problems += [
            f'the function "{name}" has the name of a score of rankwise; give it another name.'
            for name in functions if name in METRICS
        ]  # fmt: skip
        problems += [
            f'several functions are called "{name}"; give each a name of its own (a lambda is called "score").'
            for name, count in Counter(name for name, _ in given).items() if count > 1
        ]  # fmt: skip
        if problems:
            raise ConfigError(problems)
        return cls(tuple(names), functions)


def _name_of(function: Any) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    return "score" if name == "<lambda>" else name


def _places(out: str | Path | None) -> tuple[Path | None, Path | None]:
    """A file for the table of answers, and one for the result."""
    path = None if out is None else Path(out)
    if path is None or path.suffix.lower() in ("", ".json"):
        return None, path
    if path.suffix.lower() not in SUFFIXES:
        raise RunError(
            f"{path}: the name of --out ends in .json for the result, or in {', '.join(SUFFIXES)} for a table of "
            "answers."
        )
    check_name(path)
    check_place(path)
    if path.exists():
        raise RunError(f"{path} already exists. Give --out another name, or remove it.")
    return path, None


def evaluated(
    subject: Subject, task: Task, text: Text | None = None, looks: Looks | None = None, *, out: Path | None = None,
    callback: Callback = silent, images: OtherImages | None = None,
) -> Evaluation:  # fmt: skip
    """Without a `text`, or `images` for a model of images, it is not measured what was forgotten."""
    file = _result_file(subject, task, out)
    tuned = task.score(subject.model, subject.name, callback)
    callback(StatusMessage(score_line(task.name, subject.name, tuned)))
    base, differences = None, dict[str, Difference]()
    if subject.base is not None:
        with subject.base() as other:
            base = base_scores(task, other, subject.origin, str(subject.against), callback)
        differences = _differences(tuned, base)
        callback(StatusMessage(score_line(task.name, str(subject.against), base, differences)))
    n, items = task.facts()
    identity = _identity_of(subject.model)
    measured = Forgotten(
        _forgetting(subject, text, looks, callback) if text is not None else None, _features(subject, images, callback)
    )
    if file is not None and out is None:
        measured = _instead_of(file, items, measured, identity, callback)
    found = Evaluation(
        task=task.name, n=n, left_out=task.left_out, items_sha256=items, data=task.data,
        model=subject.name, against=subject.against, tuned=tuned, base=base, differences=differences,
        forgetting=measured.text, feature_forgetting=measured.features, samples=task.samples(tuned, base),
        labels=dict(task.labels) or None,
        settings=task.settings | identity, **stamped(),
    )  # fmt: skip
    if file is not None:
        write_evaluation(file, found)
        callback(StatusMessage(f"written to {file}"))
    if subject.run is not None and out is None:
        write_page(subject.run, callback)
    return found


def _result_file(subject: Subject, task: Task, out: Path | None) -> Path | None:
    """Where the result goes; told before anything is measured if it cannot."""
    if out is not None:
        check_evaluation_place(out)
        return out
    if subject.run is None:
        return None
    own = evaluation_path(subject.run.directory, task.name)
    check_place(own)
    return own


@dataclass(frozen=True)
class Forgotten:
    """What was measured of forgetting: of a language model, or of a model of images."""

    text: Forgetting | None
    features: FeatureForgetting | None


def _instead_of(
    file: Path, items: str, forgetting: Forgotten, identity: dict[str, Any], callback: Callback
) -> Forgotten:
    """What `file` records as forgotten from now on. Warns where the evaluation in it is replaced, and takes over what
    that one measured of forgetting, if it was not measured again and the model has the same weights and dtype."""
    if not file.exists():
        return forgetting
    try:
        before = read_evaluation(file)
    except RankwiseError as error:
        callback(WarningMessage(f"{file} is replaced, because it could not be read ({first_line(error)})"))
        return forgetting
    if before.items_sha256 != items:
        callback(
            WarningMessage(
                f"{file} is replaced; it contained {before.n:,} other items of {before.data} ({before.created})"
            )
        )
    if any(before.settings.get(name) != identity[name] for name in ("fingerprint", "dtype")):
        return forgetting
    return Forgotten(forgetting.text or forgetting_in(before), forgetting.features or before.feature_forgetting)


def _text(subject: Subject, text: str | None, blocks: int | None, callback: Callback) -> Text | None:
    """What is to be measured on, read before anything is measured: what is wrong with it is told at once."""
    if subject.sides is None:
        return None
    return text_elsewhere(subject.artifact, subject.model, text, BLOCKS if blocks is None else blocks, callback)


def _other_images(
    subject: Subject, images: str | None, *, with_forgetting: bool, callback: Callback
) -> OtherImages | None:
    """Read the images on which features are compared. A classifier without any is said not to be measured."""
    of_images = subject.model.processing is not None
    if images is not None and not of_images:
        raise ConfigError([f"--other-images is for models of images, and {subject.name} reads texts. Leave it out."])
    if images is not None:
        return other_images(subject.model, images, subject.run, callback)
    if with_forgetting and subject.base_features is not None:
        how = " Give labelled images that are not training data with --other-images." if of_images else ""
        callback(StatusMessage(f"what this classifier has forgotten is not measured.{how}"))
    return None


def _features(subject: Subject, images: OtherImages | None, callback: Callback) -> FeatureForgetting | None:
    if images is None or subject.base_features is None:
        return None
    return compare_features(subject.model, subject.base_features, images, callback)


def _forgetting(subject: Subject, text: Text, looks: Looks | None, callback: Callback) -> Forgetting | None:
    if subject.sides is None:
        return None
    held = {"base": subject.origin, "dtype": subject.model.facts.dtype, "created": now()}
    return forgetting_of(subject.sides, text, callback, looks).model_copy(update=held)


def asked_of(
    subject: Subject, task: str | TaskConfig | None, rows: EvaluatedRows, batch_size: int | None, callback: Callback
) -> Task:
    if isinstance(task, str) and task.startswith(PREFIX):
        subject.refuse("evaluated by lm-eval", task)
        if rows.data is not None or rows.scores != ScoresAsked():
            raise ConfigError([f"{task}: a task of lm-eval has its own data and scores. Leave out --data and --score."])
        return HarnessTask(task.removeprefix(PREFIX), rows.most, batch_size or ASKED_TOGETHER)
    table: dict[str, Callable[..., Task]] = {"answers": _answers, "pairs": _pairs, "classes": _predictions}
    return subject.objective.among(table)(subject, task, rows, batch_size, callback)


@dataclass(frozen=True)
class EvaluatedRows:
    """The rows to evaluate on: those of the file `data`, or without one the run's own validation rows; at most `most`
    of them, or all for None. `scores` are asked for instead of the task's."""

    data: str | None
    most: int | None
    scores: ScoresAsked = field(default_factory=ScoresAsked)

    def of(self, subject: Subject, callback: Callback) -> tuple[str, Measurable]:
        """Rows that the run did not train on, with the name of their task."""
        assert subject.artifact is not None, "it is a run or an adapter's folder"
        found = rows_to_measure(subject.artifact, subject.model, self.data, callback)
        name = HELD_OUT if self.data is None else task_of_rows(self.data).task
        return name, found if self.most is None else found.spread(self.most)


def _answers(
    subject: Subject, task: str | TaskConfig | None, rows: EvaluatedRows, batch_size: int | None, callback: Callback,
) -> Task:  # fmt: skip
    """Rows and tasks that are answered."""
    spec, items = _items(subject, task, rows, callback)
    if rows.scores.names or not rows.scores.functions:
        spec, items = with_fitting_scores(spec, items, subject.model, rows.scores.names, callback)
    if rows.scores.functions and not spec.used_columns:
        spec, items = with_answers(spec, items, subject.model)
    held = subject.constraint if subject.constraint != "own" else spec.constraint
    if subject.artifact is not None:
        held = subject.artifact.held_to(held)
    if held != "none" or subject.constraint == "none":
        spec = spec.model_copy(update={"constraint": held})
    if items.too_long:
        writes = spec.used_columns or rows.scores.functions
        with_answer = f" with {spec.max_new_tokens:,} new tokens" if writes else ""
        callback(
            WarningMessage(f"{items.too_long:,} rows do not fit into the model's context{with_answer} and are left out")
        )
    if items.labels:
        callback(StatusMessage(f"{spec.task}: {labels_text(dict(items.labels))}"))
    return OwnTask(spec, items, batch_size or BATCH_SIZE, rows.scores.functions, may_cut=not rows.scores.names)


def _pairs(
    subject: Subject, task: str | TaskConfig | None, rows: EvaluatedRows, batch_size: int | None, callback: Callback,
) -> Task:  # fmt: skip
    if task is not None or (rows.data is not None and is_running_text(rows.data)):
        return _answers(subject, task, rows, batch_size, callback)
    if rows.scores != ScoresAsked():
        raise ConfigError(
            [f"--score is for answers to prompts, and the rows of {subject.name} are pairs. Leave --score out."]
        )
    name, found = rows.of(subject, callback)
    return PairTask(
        name=name, about=found.about, loss=pair_loss_of(subject.objective), rows=found.documents,
        against=subject.against, base=subject.base, sides=subject.sides, left_out=found.left_out,
    )  # fmt: skip


def _predictions(
    subject: Subject, task: str | TaskConfig | None, rows: EvaluatedRows, batch_size: int | None, callback: Callback,
) -> Task:  # fmt: skip
    """A task is refused before where no answer is written."""
    if task is not None:
        return _answers(subject, task, rows, batch_size, callback)
    name, found = rows.of(subject, callback)
    scores = rows.scores.functions
    return RowTask(
        name=name, about=found.about, objective=subject.objective, rows=found.documents, left_out=found.left_out,
        functions=scores, config=found.config,
    )  # fmt: skip


def _items(
    subject: Subject, task: str | TaskConfig | None, rows: EvaluatedRows, callback: Callback
) -> tuple[TaskConfig, Requests]:
    artifact, data, names = subject.artifact, rows.data, rows.scores.names
    if task is None and (artifact is None or (data is not None and is_running_text(data))):
        if data is None:
            raise ConfigError(["which task? Give --task NAME, a YAML file, or a file of rows."])
        task, data = data, None
    if isinstance(task, str) and data is None and subject.run is not None and names_rows(task):
        task, data = None, task  # the same rows by either flag
    if isinstance(task, TaskConfig):
        config = TaskConfig(**task.model_dump(exclude_unset=True) | {"score": names}) if names else task
        return _of_task(refuse_taken(config, "TaskConfig"), subject, callback)
    if task is not None:
        return _of_task(task_named(task, data, rows.most, names), subject, callback)
    assert artifact is not None
    if data is not None and names:
        return _of_task(task_of_rows(data, score=names, rows=rows.most), subject, callback)
    found = rows_to_measure(artifact, subject.model, data, callback)
    about = TaskConfig(task=HELD_OUT, data=found.about) if data is None else task_of_rows(data)
    spec = about.model_copy(update={"rows": rows.most})
    chosen = [found.documents[at] for at in drawn(len(found.documents), spec)]
    databases = (
        {} if found.config is None else databases_in(found.config, subject.objective.rows.encoding(subject.model))
    )
    return spec, requests_of_sequences(chosen, subject.model, databases)


def _of_task(config: TaskConfig, subject: Subject, callback: Callback) -> tuple[TaskConfig, Requests]:
    """A run is asked by the columns and with the system message that it was trained with, unless the task has
    others."""
    own = config.ask is not None or config.running_text or config.model_fields_set & {"format", *COLUMN_SETTINGS}
    if subject.run is not None and not own:
        columns = columns_of_run(subject.run, data_spec(config), callback)
        config = config.model_copy(update={name: columns[name] for name in columns.keys() - config.model_fields_set})
    if config.chat and not config.running_text and config.system is None:
        config = config.model_copy(update={"system": subject.system})
    items = requests_of(config, subject.model)
    if subject.run is not None:
        refuse_training_files(subject.run, identities(config))
    return config, items


def _differences(tuned: ModelScores, base: ModelScores | None) -> dict[str, Difference]:
    if base is None:
        return {}
    return {
        metric: difference(metric_named(metric), base.scores[metric].sums, one.sums)
        for metric, one in tuned.scores.items()
    }


def _identity_of(model: LoadedModel) -> dict[str, Any]:
    facts = model.facts
    identity: dict[str, Any] = {"dtype": facts.dtype, "fingerprint": facts.fingerprint}
    if model.processing is not None:
        return identity | {"image_size": model.processing.size}
    return identity | {"template": model.template.identity, "tokenizer": model.tokenizer.identity}
