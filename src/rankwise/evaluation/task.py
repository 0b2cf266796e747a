"""A task with its requests, ready to score models: likelihoods, choices, generated answers and their metrics.

Answers are decoded greedily. If exact is the only metric, decoding stops once the answer can no longer match. Prompts
are padded on the left and reordered by length; in float32 an answer does not depend on the other prompts in its batch.

Scores of base models are cached, so all runs of one base are compared with the same scores. The key covers everything
that the numbers depend on: the fingerprint of the weights and their dtype, the tokenizer, the chat template and the
tokens that end an answer, each request as ids, the task's settings, rankwise's own code, the libraries that compute and
score, and the CPU with its number of threads. A damaged entry fails its checksum, and the base is evaluated again.
Entries unused for thirty days are removed when a new one is written.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from itertools import accumulate, pairwise, product
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import regex
import torch

from rankwise.base.loaded import LoadedModel
from rankwise.config.data import Constrained
from rankwise.config.tasks import LIKELIHOOD, TaskConfig
from rankwise.config.validation import GenerationConfig
from rankwise.errors import DataError, RankwiseError, ResourceError, is_out_of_memory, some
from rankwise.evaluation.intervals import scores, with_interval
from rankwise.evaluation.likelihood import Likelihood, likelihoods
from rankwise.evaluation.metrics import (
    METRICS,
    MORE,
    ScoreFunction,
    means,
    need_library,
    rating_rows,
    rows_of,
    rows_of_function,
    searched,
    unfit,
)
from rankwise.evaluation.requests import Request, Requests
from rankwise.evaluation.scoring import field_figures, problem_of_references, sql_rows
from rankwise.inference.generate import answers_in_turn
from rankwise.objectives.registry import text_objective
from rankwise.rows.encoded.dealing import Dealing, undealt
from rankwise.runs.evaluations import FieldFigures, ModelScores, Sample
from rankwise.runs.records import Callback, ProgressUpdate, StatusMessage
from rankwise.system.cache import cache_folder, forget_old, our_own
from rankwise.system.extras import installed_version
from rankwise.system.files import sha256_of, write_json
from rankwise.system.processor import processor_name

SAMPLES = 20


class Task(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def data(self) -> str:
        """Name of the source of its rows."""
        ...

    @property
    def settings(self) -> dict[str, Any]: ...

    @property
    def left_out(self) -> int:
        """Number of rows left out because they exceed the model's context."""
        ...

    @property
    def labels(self) -> tuple[tuple[str, int], ...]:
        """The answers that occur with their counts, if these are the choices."""
        ...

    @property
    def identity(self) -> str | None:
        """Hash of everything but the model that the scores depend on; None if unknown."""
        ...

    def score(self, model: LoadedModel, who: str, callback: Callback) -> ModelScores: ...

    def facts(self) -> tuple[int, str]:
        """Return the number of items and their hash; called after the first model was scored."""
        ...

    def samples(self, tuned: ModelScores, base: ModelScores | None) -> list[Sample]: ...

    def items(self) -> list[dict[str, Any]]:
        """Place, prompt and reference of each item; nothing where there are none. Called after a model was scored."""
        ...


class WithoutAnswers:
    """What tasks share whose rows and answers are not kept as text, and of whose base nothing is cached."""

    labels = ()
    identity = None

    def items(self) -> list[dict[str, Any]]:
        return []

    def samples(self, tuned: ModelScores, base: ModelScores | None) -> list[Sample]:
        return []


@dataclass(frozen=True)
class OwnTask:
    """A task with rankwise's own requests. `batch_size` answers are generated at once; rows that cannot be scored are
    refused. `functions` score answers beside the task's own scores."""

    config: TaskConfig
    requests: Requests
    batch_size: int
    functions: Mapping[str, ScoreFunction] = field(default_factory=dict)
    may_cut: bool = True
    """Whether an answer may end once it can no longer be exact, where nothing else is scored."""

    def __post_init__(self) -> None:
        refuse_unfit(self.config, self.requests.requests)

    @property
    def name(self) -> str:
        return self.config.task

    @property
    def left_out(self) -> int:
        return self.requests.too_long

    @property
    def data(self) -> str:
        return Path(self.config.data).name

    @property
    def settings(self) -> dict[str, Any]:
        own = self.config.model_dump(mode="json", exclude={"data", "task"}, exclude_defaults=True)
        return own | ({"functions": list(self.functions)} if self.functions else {})

    @property
    def writes_answers(self) -> bool:
        return bool(self.config.used_columns or self.functions)

    @property
    def labels(self) -> tuple[tuple[str, int], ...]:
        return self.requests.labels

    @property
    def identity(self) -> str | None:
        if self.functions:  # nobody knows what they depend on
            return None
        known = sha256(json.dumps([self.settings, self.batch_size, self.may_cut, self.requests.sha256]).encode())
        for request in self.requests.requests:
            for ids in (request.prompt_ids, *(part for one in request.documents for part in (one.ids, one.loss_mask))):
                known.update(np.asarray([len(ids), *ids], "<i8").tobytes())
        databases = {one.database for one in self.requests.requests if one.database and "sql" in self.config.score}
        known.update("".join(sha256_of(Path(file)) for kind, file in sorted(databases) if kind == "database").encode())
        return known.hexdigest()

    def score(self, model: LoadedModel, who: str, callback: Callback) -> ModelScores:
        return score_task(
            self.config, self.requests.requests, model, callback, batch_size=self.batch_size, who=who,
            functions=self.functions, may_cut=self.may_cut,
        )  # fmt: skip

    def facts(self) -> tuple[int, str]:
        return len(self.requests.requests), self.requests.sha256

    def items(self) -> list[dict[str, Any]]:
        return [{"where": one.where, "prompt": one.prompt, "reference": one.target} for one in self.requests.requests]

    def samples(self, tuned: ModelScores, base: ModelScores | None) -> list[Sample]:
        """Return the first few requests with the answers of both models."""
        if tuned.answers is None:
            return []
        others = base.answers if base is not None and base.answers is not None else None
        return [
            Sample(
                prompt=request.prompt, target=request.target, tuned=tuned.answers[at],
                base=others[at] if others is not None else None,
            )
            for at, request in enumerate(self.requests.requests[:SAMPLES])
        ]  # fmt: skip


Rows = list[list[float]]
UNNORMALISED = "_unnormalised"
HALF = "\ufffd"
"""Stands for an incomplete character."""
CUT = " \u2026"
"""Follows an answer that was not decoded to its end."""


def score_task(
    task: TaskConfig, requests: Sequence[Request], model: LoadedModel, callback: Callback, *, batch_size: int, who: str,
    dealing: Dealing = undealt, functions: Mapping[str, ScoreFunction] = MappingProxyType({}),
    may_cut: bool = True,
) -> ModelScores:  # fmt: skip
    """Compute all metrics of a task, and the user's `functions` of answers. `batch_size` answers are generated at once;
    `who` names the model in progress messages. What the model computes may be dealt over processes."""
    began = time.perf_counter()
    found: dict[str, Rows] = {}
    if any(score in LIKELIHOOD for score in task.score):
        found |= _by_likelihood(task, requests, model, callback, f"Scoring {task.task}, {who}", dealing)
    written = None
    if task.used_columns or functions:
        what, exact = f"Answering {task.task}, {who}", may_cut and task.used_columns == ("exact",) and not functions

        def answered(part: Sequence[Request]) -> list[str]:
            return answers(
                part, model, task.max_new_tokens, callback, batch_size, what, until_wrong=exact,
                constraint=task.constraint,
            )  # fmt: skip

        written = dealing(requests, [len(request.prompt_ids) for request in requests], answered)
        found |= {metric: _rows(metric, written, requests, task) for metric in task.used_columns}
        references = [request.references for request in requests]
        found |= {name: rows_of_function(name, one, written, references) for name, one in functions.items()}
    assert set(task.score) <= set(found), "refuse_unfit has checked this"
    return ModelScores(
        scores={metric: scores(metric, found[metric]) for metric in (*_in_order(task), *functions) if metric in found},
        answers=written,
        fields=_fields(written, requests, task) if written is not None and "json" in task.score else None,
        seconds=time.perf_counter() - began,
    )


def _fields(answers: Sequence[str], requests: Sequence[Request], task: TaskConfig) -> list[FieldFigures]:
    found = field_figures(answers, [request.references for request in requests], task.tolerance)
    formulas = {"f1": METRICS["micro_f1"]}
    return [
        FieldFigures(field=field, rows=len(figures.get("exact", ())),
                     **{name: with_interval(formulas.get(name, MORE), rows) for name, rows in figures.items()})
        for field, figures in found.items()
    ]  # fmt: skip


def _in_order(task: TaskConfig) -> list[str]:
    return [metric for score in task.score for metric in (score, f"{score}{UNNORMALISED}")]


def _by_likelihood(
    task: TaskConfig, requests: Sequence[Request], model: LoadedModel, callback: Callback, what: str, dealing: Dealing
) -> dict[str, Rows]:
    def scored(share: Sequence[Request]) -> list[list[tuple[float, int]]]:
        return [[(one.nats, one.tokens) for one in of] for of in _likelihoods(task, share, model, callback, what)]

    costs = [sum(len(document.ids) for document in request.documents) for request in requests]
    each = [[Likelihood(*one) for one in of] for of in dealing(requests, costs, scored)]
    made: dict[str, Rows] = {}
    if "loss" in task.score:
        right = [found[request.right if task.chosen else 0 :][:1] if task.chosen else found
                 for request, found in zip(requests, each, strict=True)]  # fmt: skip
        made["loss"] = [[sum(part) for part in zip(*(one.sums for one in own), strict=True)] for own in right]
    return made | (_chosen(requests, each) if task.chosen else {})


def _likelihoods(
    task: TaskConfig, requests: Sequence[Request], model: LoadedModel, callback: Callback, what: str
) -> list[list[Likelihood]]:
    """Compute the likelihoods of the documents of each request. ResourceError where memory runs out."""
    documents = [document for request in requests for document in request.documents]
    places = [request.where for request in requests for _ in request.documents]
    objective = text_objective(model)
    try:
        flat = likelihoods(
            model.module, documents, callback, what, places, forward=partial(objective.loss.predict, model.module),
            collated=objective.text_writer.collated,
        )  # fmt: skip
    except Exception as error:
        if is_out_of_memory(error):
            raise ResourceError(
                f"out of memory while scoring {len(documents):,} sequences of {task.task}, the longest of "
                f"{max(len(one.ids) for one in documents):,} tokens. Give shorter rows, or --dtype bfloat16."
            ) from None
        raise
    ends = accumulate((len(request.documents) for request in requests), initial=0)
    return [flat[begin:end] for begin, end in pairwise(ends)]


def _chosen(requests: Sequence[Request], each: Sequence[Sequence[Likelihood]]) -> dict[str, Rows]:
    """Choose the most likely choice, the first of equals. If rows have their own choices, likelihoods are divided by
    the length in characters, because long choices would otherwise never win. Labels that all rows share need no
    normalisation."""
    bare = [int(np.argmin([one.nats for one in own])) for own in each]
    if same_choices(requests):
        hits = means(pick == request.right for pick, request in zip(bare, requests, strict=True))
        classes = [[float(pick), float(request.right)] for pick, request in zip(bare, requests, strict=True)]
        return {"accuracy": hits, "f1": classes, "matthews": classes}
    picks = [
        int(np.argmin([one.nats / size for one, size in zip(own, request.sizes, strict=True)]))
        for request, own in zip(requests, each, strict=True)
    ]
    return {
        metric: means(pick == request.right for pick, request in zip(taken, requests, strict=True))
        for metric, taken in (("accuracy", picks), (f"accuracy{UNNORMALISED}", bare))
    }


def same_choices(requests: Sequence[Request]) -> bool:
    return len({request.choices for request in requests}) == 1


def answers(
    requests: Sequence[Request], model: LoadedModel, most: int, callback: Callback, batch_size: int, what: str,
    *, until_wrong: bool = False, constraint: Constrained = "none",
) -> list[str]:  # fmt: skip
    """Generate answers in the order of the requests. With `until_wrong`, decoding stops once an answer can no longer
    become a reference; a cut answer ends with CUT."""
    prompts = [request.prompt_ids for request in requests]
    spec = GenerationConfig(max_new_tokens=most, repetition_check=False, constraint=constraint)
    try:
        written = answers_in_turn(
            model, prompts, spec, batch_size,
            lambda done: callback(ProgressUpdate(what, done, len(prompts), "answers")),
            is_settled=(lambda at, text: is_wrong(text, requests[at])) if until_wrong else None,
        )  # fmt: skip
    except Exception as error:
        if is_out_of_memory(error):
            raise ResourceError(
                f"out of memory while answering up to {min(batch_size, len(prompts))} prompts at once, the longest of "
                f"{max(map(len, prompts)):,} tokens. Lower --batch-size {batch_size}, or give --dtype bfloat16."
            ) from None
        raise
    cut = [until_wrong and one.stopped == "length" and one.tokens < most for one in written]
    return [one.text.rstrip(HALF) + CUT if short else one.text for one, short in zip(written, cut, strict=True)]


def is_wrong(beginning: str, request: Request) -> bool:
    """Tell whether no answer with this beginning can equal a reference, apart from surrounding white space. The last
    character may be incomplete."""
    begun = beginning.strip().rstrip(HALF)
    return not any(reference.strip().startswith(begun) for reference in request.references)


def _rows(metric: str, answers: Sequence[str], requests: Sequence[Request], task: TaskConfig) -> Rows:
    if metric == "pearson":
        return rating_rows(answers, [request.target for request in requests])
    references = [request.references for request in requests]
    if metric == "sql":
        return sql_rows(answers, references, [request.database for request in requests])
    return rows_of(metric, answers, references, task)


def refuse_unfit(task: TaskConfig, requests: Sequence[Request]) -> None:
    """Refuse references that the metrics cannot score, before a model is run."""
    for metric in task.score:
        need_library(metric)
    shared = [score for score in task.score if score in ("f1", "matthews")]
    if shared and not same_choices(requests):
        other = next(request for request in requests if request.choices != requests[0].choices)
        raise DataError(
            f"{other.where}: has the choices {some(other.choices, 5)}, and {requests[0].where} has "
            f"{some(requests[0].choices, 5)}; {shared[0]} needs the same choices in all rows."
        )
    if task.pattern is not None:
        _refuse_unmatched(task.pattern, requests)
    for request in requests:
        for metric, reference in product(task.score, request.references):
            if why := unfit(metric, reference):
                raise DataError(f"{request.where}: the reference answer {why}: {reference[:60]!r}.")
    every = [(request.where, reference, request.database) for request in requests for reference in request.references]
    if (problem := problem_of_references(task.score, every)) is not None:
        raise DataError(problem)


def _refuse_unmatched(pattern: str, requests: Sequence[Request]) -> None:
    """Refuse a pattern with groups that finds nothing in a reference, since no answer could match it. This also detects
    patterns that are too slow."""
    compiled = regex.compile(pattern)
    for request in requests:
        for reference in request.references:
            if searched(compiled, reference) is None and compiled.groups:
                raise DataError(
                    f"{request.where}: the pattern {pattern!r} finds nothing in the reference answer: "
                    f"{reference[:60]!r}."
                )


COUNTED_BY = ("torch", "sacrebleu", "rouge-score")
"""Libraries whose versions are part of the key, beside those that `our_own` covers."""


def base_scores(task: Task, model: LoadedModel, fingerprint: str | None, who: str, callback: Callback) -> ModelScores:
    """Return the base's scores, from the cache if possible. Without a `fingerprint` of the current weights, nothing is
    cached."""
    identity = task.identity
    if fingerprint is None or identity is None:
        return task.score(model, who, callback)
    file = cache_folder() / "scores" / f"{_key(identity, model, fingerprint)}.json"
    known = _recalled(file)
    if known is not None:
        callback(StatusMessage(f"{who} was evaluated on {task.name} before; its scores are taken from the cache"))
        return known
    scores = task.score(model, who, callback)
    _store(file, scores, callback)
    return scores


def _key(identity: str, model: LoadedModel, fingerprint: str) -> str:
    facts, template = model.facts, model.template
    parts = [
        identity, fingerprint, facts.dtype, facts.device, model.tokenizer.identity, template.identity,
        list(template.end_ids), our_own(), *map(installed_version, COUNTED_BY), processor_name(),
        torch.get_num_threads(),
    ]  # fmt: skip
    return _digest(parts)


def _digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _recalled(file: Path) -> ModelScores | None:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        if _digest(stored["scores"]) != stored["sha256"]:
            return None
        os.utime(file)  # mark as used
        return ModelScores(**stored["scores"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, RankwiseError):  # missing or damaged
        return None


def _store(file: Path, scores: ModelScores, callback: Callback) -> None:
    """Write an entry. A failure is only reported, since it merely costs the time of another evaluation."""
    content = scores.model_dump(mode="json")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"sha256": _digest(content), "scores": content})
        forget_old(file.parent)
    except (RankwiseError, OSError) as error:
        callback(StatusMessage(f"the scores of the base model could not be cached: {error}"))
