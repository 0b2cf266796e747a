"""One model's side of an evaluation: what it finds likely, what it chooses, what it writes, and the scores of that.

Answers are greedy. Where exact alone is asked for, one is written only until it can no longer be right. Their prompts
are padded on the left and taken in an order of their own; in float32 an answer is the same in whatever company it is
written.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import accumulate, pairwise, product

import numpy as np
import regex

from rankwise.config.generation import GenerationConfig
from rankwise.config.tasks import LIKELIHOOD, TaskConfig
from rankwise.errors import DataError, ResourceError, is_out_of_memory, some
from rankwise.evaluation.intervals import scores
from rankwise.evaluation.likelihood import Likelihood, likelihoods
from rankwise.evaluation.metrics import class_row, rating_rows, rows_of, searched, unfit
from rankwise.evaluation.requests import Item
from rankwise.inference.generate import answers_in_turn
from rankwise.models.loaded import LoadedModel
from rankwise.runs.evaluations import Side
from rankwise.runs.records import Callback, ProgressUpdate

Rows = list[list[float]]
UNNORMALISED = "_unnormalised"
HALF = "\ufffd"
"""What stands for a part of a character."""
CUT = " \u2026"
"""Behind an answer that was not written to its end."""


def side(
    task: TaskConfig, items: Sequence[Item], model: LoadedModel, callback: Callback, *, together: int, who: str
) -> Side:
    """All scores of a task. `together` prompts are answered at once; `who` is the model, for whoever waits."""
    began = time.perf_counter()
    found: dict[str, Rows] = {}
    if any(score in LIKELIHOOD for score in task.score):
        found |= _by_likelihood(task, items, model, callback, f"Scoring {task.task}, {who}")
    written = None
    if task.written:
        what, exact = f"Answering {task.task}, {who}", task.written == ("exact",)
        written = answers(items, model, task.max_new_tokens, callback, together, what, until_wrong=exact)
        found |= {metric: _rows(metric, written, items, task) for metric in task.written}
    assert set(task.score) <= set(found), "what cannot be scored is refused before (refuse_unfit)"
    return Side(
        scores={metric: scores(metric, found[metric]) for metric in _in_order(task) if metric in found},
        answers=written,
        seconds=time.perf_counter() - began,
    )


def _in_order(task: TaskConfig) -> list[str]:
    return [metric for score in task.score for metric in (score, f"{score}{UNNORMALISED}")]


def _by_likelihood(
    task: TaskConfig, items: Sequence[Item], model: LoadedModel, callback: Callback, what: str
) -> dict[str, Rows]:
    documents = [document for item in items for document in item.documents]
    places = [item.where for item in items for _ in item.documents]
    try:
        flat = likelihoods(model.module, documents, callback, what, places)
    except Exception as error:
        if is_out_of_memory(error):
            raise ResourceError(
                f"out of memory while scoring {len(documents):,} documents of {task.task}, the longest of "
                f"{max(len(one.ids) for one in documents):,} tokens. Give shorter rows, or --dtype bfloat16."
            ) from None
        raise
    ends = accumulate((len(item.documents) for item in items), initial=0)
    each = [flat[begin:end] for begin, end in pairwise(ends)]
    made: dict[str, Rows] = {}
    if "loss" in task.score:
        right = [found[item.right if task.chosen else 0 :][:1] if task.chosen else found
                 for item, found in zip(items, each, strict=True)]  # fmt: skip
        made["loss"] = [[sum(part) for part in zip(*(one.sums for one in own), strict=True)] for own in right]
    return made | (_chosen(items, each) if task.chosen else {})


def _chosen(items: Sequence[Item], each: Sequence[Sequence[Likelihood]]) -> dict[str, Rows]:
    """The likeliest choice; equal ones by their order. Where rows have choices of their own it is the likeliest for its
    length in characters, since a long one would never be taken. Labels that all rows share say nothing by their
    length."""
    bare = [int(np.argmin([one.nats for one in own])) for own in each]
    if same_choices(items):
        count = len(items[0].choices)
        hits = [[float(pick == item.right), 1.0] for pick, item in zip(bare, items, strict=True)]
        classes = [class_row(pick, item.right, count) for pick, item in zip(bare, items, strict=True)]
        return {"accuracy": hits, "f1": classes, "matthews": classes}
    picks = [
        int(np.argmin([one.nats / size for one, size in zip(own, item.sizes, strict=True)]))
        for item, own in zip(items, each, strict=True)
    ]
    return {
        metric: [[float(pick == item.right), 1.0] for pick, item in zip(taken, items, strict=True)]
        for metric, taken in (("accuracy", picks), (f"accuracy{UNNORMALISED}", bare))
    }


def same_choices(items: Sequence[Item]) -> bool:
    return len({item.choices for item in items}) == 1


def answers(
    items: Sequence[Item], model: LoadedModel, most: int, callback: Callback, together: int, what: str,
    *, until_wrong: bool = False,
) -> list[str]:  # fmt: skip
    """What the model writes, in the order of the items; with `until_wrong` only as long as it can still become one of
    the references. An answer that is cut so ends with CUT."""
    prompts, spec = [item.given for item in items], GenerationConfig(max_new_tokens=most, repetition_check=False)
    try:
        written = answers_in_turn(
            model, prompts, spec, together, lambda done: callback(ProgressUpdate(what, done, len(prompts), "answers")),
            refuse_damage=True, settled=(lambda at, text: is_wrong(text, items[at])) if until_wrong else None,
        )  # fmt: skip
    except Exception as error:
        if is_out_of_memory(error):
            raise ResourceError(
                f"out of memory while answering up to {min(together, len(prompts))} prompts at once, the longest of "
                f"{max(map(len, prompts)):,} tokens. Lower --batch-size {together}, or give --dtype bfloat16."
            ) from None
        raise
    cut = [until_wrong and one.stopped == "length" and one.tokens < most for one in written]
    return [one.text.rstrip(HALF) + CUT if short else one.text for one, short in zip(written, cut, strict=True)]


def is_wrong(beginning: str, item: Item) -> bool:
    """Whether no answer that begins so equals a reference, but for white space around it. What stands at the end may be
    half of a character."""
    begun = beginning.strip().rstrip(HALF)
    return not any(reference.strip().startswith(begun) for reference in item.references)


def _rows(metric: str, written: Sequence[str], items: Sequence[Item], task: TaskConfig) -> Rows:
    if metric == "pearson":
        return rating_rows(written, [item.wanted for item in items])
    return rows_of(metric, written, [item.references for item in items], task.pattern)


def refuse_unfit(task: TaskConfig, items: Sequence[Item]) -> None:
    """What is wanted must be what the metrics compare; asked before a model works on it."""
    shared = [score for score in task.score if score in ("f1", "matthews")]
    if shared and not same_choices(items):
        other = next(item for item in items if item.choices != items[0].choices)
        raise DataError(
            f"{other.where}: has the choices {some(other.choices, 5)}, and {items[0].where} has "
            f"{some(items[0].choices, 5)}; {shared[0]} needs the same choices in all rows."
        )
    if task.pattern is not None:
        _refuse_unmatched(task.pattern, items)
    for item in items:
        for metric, reference in product(task.score, item.references):
            if why := unfit(metric, reference):
                raise DataError(f"{item.where}: the wanted answer {why}: {reference[:60]!r}.")


def _refuse_unmatched(pattern: str, items: Sequence[Item]) -> None:
    """No answer has the groups of a pattern that does not find what is wanted. One that is too slow is known by that
    too."""
    compiled = regex.compile(pattern)
    for item in items:
        for reference in item.references:
            if searched(compiled, reference) is None and compiled.groups:
                raise DataError(
                    f"{item.where}: the pattern {pattern!r} finds nothing in the wanted answer: {reference[:60]!r}."
                )
