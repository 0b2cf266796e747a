"""One model's side of an evaluation: what it finds likely, what it chooses, what it writes, and the scores of that.

Answers are greedy. Their prompts are padded on the left and taken in an order of their own; in float32 an answer is the
same in whatever company it is written.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from rankwise.errors import EvaluationError, is_out_of_memory
from rankwise.evaluation.intervals import scores
from rankwise.evaluation.items import Item
from rankwise.evaluation.likelihood import Likelihood, likelihoods
from rankwise.evaluation.metrics import class_row, json_fields, number_in, number_row, rows_of
from rankwise.models.generation import answers_to
from rankwise.models.loaded import LoadedModel
from rankwise.run.evaluations import Side
from rankwise.run.records import Announce, Progressed
from rankwise.spec.generation import GenerationSpec
from rankwise.spec.tasks import LIKELIHOOD, TaskSpec

Rows = list[list[float]]


def side(
    task: TaskSpec, items: Sequence[Item], model: LoadedModel, announce: Announce, *, together: int, who: str
) -> Side:
    """All scores of a task. `together` prompts are answered at once; `who` is the model, for whoever waits."""
    began = time.perf_counter()
    found: dict[str, Rows] = {}
    if any(score in LIKELIHOOD for score in task.score):
        found |= _by_likelihood(task, items, model, announce, f"Scoring {task.task}, {who}")
    written = None
    if task.written:
        _check_wanted(task, items)
        written = answers(items, model, task.max_new_tokens, announce, together, f"Answering {task.task}, {who}")
        found |= {metric: _rows(metric, written, items, task) for metric in task.written}
    return Side(
        scores={metric: scores(metric, rows) for metric, rows in found.items()},
        answers=written,
        seconds=time.perf_counter() - began,
    )


def _by_likelihood(
    task: TaskSpec, items: Sequence[Item], model: LoadedModel, announce: Announce, what: str
) -> dict[str, Rows]:
    documents = [document for item in items for document in item.documents]
    flat = likelihoods(model.module, documents, announce, what)
    ends = accumulate((len(item.documents) for item in items), initial=0)
    each = [flat[begin:end] for begin, end in pairwise(ends)]
    made: dict[str, Rows] = {}
    if "loss" in task.score:
        right = [found[item.right if task.chosen else 0 :][:1] if task.chosen else found
                 for item, found in zip(items, each, strict=True)]  # fmt: skip
        made["loss"] = [[sum(one.nats for one in own), float(sum(one.tokens for one in own))] for own in right]
    return made | (_chosen(task, items, each) if task.chosen else {})


def _chosen(task: TaskSpec, items: Sequence[Item], each: Sequence[Sequence[Likelihood]]) -> dict[str, Rows]:
    """The likeliest choice for its length in characters; equal ones by their order."""
    picks = [
        int(np.argmin([one.nats / size for one, size in zip(own, item.sizes, strict=True)]))
        for item, own in zip(items, each, strict=True)
    ]
    made: dict[str, Rows] = {}
    if "accuracy" in task.score:
        bare = [int(np.argmin([one.nats for one in own])) for own in each]
        made["accuracy"] = [[float(pick == item.right), 1.0] for pick, item in zip(picks, items, strict=True)]
        made["accuracy_unnormalised"] = [
            [float(pick == item.right), 1.0] for pick, item in zip(bare, items, strict=True)
        ]
    classes = {len(item.sizes) for item in items}
    for metric in ("f1", "matthews"):
        if metric in task.score:
            if len(classes) > 1:
                raise EvaluationError(f"{metric} needs the same choices in all rows, and here are {min(classes)} to "
                                      f"{max(classes)} of them.")  # fmt: skip
            made[metric] = [class_row(pick, item.right, *classes) for pick, item in zip(picks, items, strict=True)]
    return made


def answers(
    items: Sequence[Item], model: LoadedModel, most: int, announce: Announce, together: int, what: str
) -> list[str]:
    """What the model writes, in the order of the items."""
    order = sorted(range(len(items)), key=lambda at: (-len(items[at].given), items[at].given))
    spec, texts = GenerationSpec(max_new_tokens=most), [""] * len(items)
    for begin in range(0, len(order), together):
        batch = order[begin : begin + together]
        announce(Progressed(what, begin, len(order), "answers"))
        try:
            written = answers_to(model, [items[at].given for at in batch], spec)
        except Exception as error:
            if is_out_of_memory(error) and together > 1:
                raise EvaluationError(f"out of memory while answering {len(batch)} prompts at once; lower "
                                      f"--batch-size {together}.") from None  # fmt: skip
            raise
        for at, one in zip(batch, written, strict=True):
            texts[at] = one.text
    announce(Progressed(what, len(order), len(order), "answers"))
    return texts


def _rows(metric: str, written: Sequence[str], items: Sequence[Item], task: TaskSpec) -> Rows:
    wanted = [item.wanted for item in items]
    if metric != "pearson":
        return rows_of(metric, written, wanted, task.pattern)
    return [number_row(_number(answer), _number(one)) for answer, one in zip(written, wanted, strict=True)]


def _number(text: str) -> float:
    """0 where there is none: who answers with words has not rated."""
    return float(number_in(text) or 0)


def _check_wanted(task: TaskSpec, items: Sequence[Item]) -> None:
    """What is wanted must be what the metric compares."""
    for item in items:
        if {"number", "pearson"} & set(task.written) and number_in(item.wanted) is None:
            raise EvaluationError(f"{item.where}: the wanted answer has no number in it: {item.wanted[:60]!r}.")
        if "json" in task.written:
            try:
                json_fields("", item.wanted)
            except (ValueError, RecursionError):
                raise EvaluationError(f"{item.where}: the wanted answer is not JSON: {item.wanted[:60]!r}.") from None
