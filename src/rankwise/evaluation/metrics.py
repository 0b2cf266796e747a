"""Metrics as sums over items, and a formula over the sums.

    value = of(sum of rows),   one row (k,) per item

So a metric of any choice of items, drawn again or left out, is the same formula over other sums, and so are its
interval and its difference from another model's (intervals.py). Nothing depends on the order of the items. Texts are
compared by sacrebleu and rouge-score where these are the field's own measure. An item may have several references:
sacrebleu has its own rule for them, and every other metric counts the reference that the answer matches best.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from rankwise.data.strict_json import loads
from rankwise.errors import EvaluationError

Sums = NDArray[np.float64]
SECONDS = 1.0
"""For one pattern on one text."""
LARGEST = 1_000_000_000_000
"""Of a wanted rating."""
TextRow = Callable[[str, Sequence[str]], list[float]]


@dataclass(frozen=True)
class Metric:
    """`of` takes sums (..., k) to values (...); `text` an answer and its references to an item's row."""

    of: Callable[[Sums], Sums]
    text: TextRow | None = None
    more_is_better: bool = True


def share(sums: Sums) -> Sums:
    """[earned, possible]."""
    return sums[..., 0] / np.maximum(sums[..., 1], 1e-300)


def macro_f1(sums: Sums) -> Sums:
    """[right, predicted, actual] of each class; a class that never occurs on either side does not count."""
    right, predicted, actual = (sums[..., part::3] for part in range(3))
    both = predicted + actual
    seen = both > 0
    return (2 * right / np.where(seen, both, 1)).sum(-1) / np.maximum(seen.sum(-1), 1)


def matthews(sums: Sums) -> Sums:
    """The correlation of predicted and actual classes (Gorodkin 2004), from the same rows; 0 where one is constant."""
    right, predicted, actual = (sums[..., part::3] for part in range(3))
    n = actual.sum(-1)
    shared = right.sum(-1) * n - (predicted * actual).sum(-1)
    spread = (n**2 - (predicted**2).sum(-1)) * (n**2 - (actual**2).sum(-1))
    return np.where(spread > 0, shared / np.sqrt(np.where(spread > 0, spread, 1)), 0.0)


def pearson(sums: Sums) -> Sums:
    """[1, x, y, xx, yy, xy]; 0 where one is constant, and nan where one is no number."""
    n, x, y, xx, yy, xy = (sums[..., part] for part in range(6))
    spread = (n * xx - x**2) * (n * yy - y**2)
    sure = ~(spread <= 1e-12 * np.maximum(n * xx * n * yy, 1e-300))  # of nan too
    return np.where(sure, (n * xy - x * y) / np.sqrt(np.where(sure, spread, 1)), 0.0)


def class_row(predicted: int, actual: int, classes: int) -> list[float]:
    """An item's row for `macro_f1` and `matthews`."""
    row = [0.0] * (3 * classes)
    row[3 * predicted + 1] += 1.0
    row[3 * actual + 2] += 1.0
    row[3 * actual] += float(predicted == actual)
    return row


def number_row(predicted: float, actual: float) -> list[float]:
    """An item's row for `pearson`."""
    return [1.0, predicted, actual, predicted**2, actual**2, predicted * actual]


def exact(answer: str, wanted: str) -> list[float]:
    """To the letter, but for white space around it."""
    return [float(answer.strip() == wanted.strip()), 1.0]


def number(answer: str, wanted: str) -> list[float]:
    """The number after ####, or the last one, as in GSM8K."""
    found = number_in(answer)
    return [float(found is not None and found == number_in(wanted)), 1.0]


_NUMBER = re.compile(r"-?(?:\d[\d,]*)?\.?\d+")


def number_in(text: str) -> Decimal | None:
    _, marked, tail = text.rpartition("####")
    found = _NUMBER.findall(tail if marked else text)
    try:
        return Decimal(found[0 if marked else -1].replace(",", "")) if found else None
    except InvalidOperation:
        return None


def rating_in(text: str) -> float | None:
    """The first number, where it is finite."""
    found = _NUMBER.search(text)
    value = float(found[0].replace(",", "")) if found else math.nan
    return value if math.isfinite(value) else None


def rating_rows(answers: Sequence[str], wanted: Sequence[str]) -> list[list[float]]:
    """For `pearson`: no answer counts for more than the ends of what is wanted, and one without a number as the lowest
    end, on whatever scale: a correlation does not depend on where a scale begins."""
    actual = [rating_in(one) or 0.0 for one in wanted]
    low, high = min(actual), max(actual)
    given = [rating_in(answer) for answer in answers]
    return [
        number_row(low if rating is None else min(max(rating, low), high), one)
        for rating, one in zip(given, actual, strict=True)
    ]


def json_fields(answer: str, wanted: str) -> list[float]:
    """The share of all fields of either that both have with the same value; nested ones by their path. Each item is
    one, however many fields are made up for it."""
    leaves = _leaves(loads(wanted))
    try:
        found = _leaves(loads(_unfenced(answer)))
    except (ValueError, RecursionError):
        return [0.0, 1.0]
    equal = sum(found.get(path, _NOTHING) == value for path, value in leaves.items())
    return [equal / len(leaves | found), 1.0]


_NOTHING = object()


FieldPath = tuple[str | int, ...]
"""Names of an object's fields and places in a list; a field "0" is no place 0."""


def _leaves(value: Any, path: FieldPath = ()) -> dict[FieldPath, Any]:
    if isinstance(value, dict) and value:
        return {deep: leaf for name, part in value.items() for deep, leaf in _leaves(part, (*path, name)).items()}
    if isinstance(value, list) and value:
        return {deep: leaf for at, part in enumerate(value) for deep, leaf in _leaves(part, (*path, at)).items()}
    return {path: (isinstance(value, bool), value)}  # True is no 1


def _unfenced(answer: str) -> str:
    """What stands between ``` and ```, where an answer wraps its JSON so."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*\n(.*)\n```\s*", answer, re.DOTALL)
    return fenced[1] if fenced else answer


def matching(pattern: str) -> Callable[[str, str], list[float]]:
    """Whether the pattern finds in the answer the groups that it finds in what was wanted; without groups, whether it
    finds anything."""
    compiled = regex.compile(pattern)

    def row(answer: str, wanted: str) -> list[float]:
        found = searched(compiled, answer)
        if found is None or not compiled.groups:
            return [float(found is not None), 1.0]
        return [float(found == searched(compiled, wanted)), 1.0]

    return row


def searched(compiled: regex.Pattern[str], text: str) -> tuple[str | None, ...] | None:
    try:
        found = compiled.search(text, timeout=SECONDS)
    except TimeoutError:
        raise EvaluationError(
            f"the pattern {compiled.pattern!r} takes more than {SECONDS:.0f} s on one answer; write a simpler one."
        ) from None
    return found.groups() if found else None


def best(row: Callable[[str, str], list[float]]) -> TextRow:
    """Of [earned, possible] against each reference, the one with the largest share."""

    def of_references(answer: str, references: Sequence[str]) -> list[float]:
        return max((row(answer, one) for one in references), key=lambda sums: sums[0] / sums[1])

    return of_references


def rouge(kind: str) -> Callable[[str, str], list[float]]:
    """F of shared stemmed words (rouge1), pairs of words (rouge2), or the longest common subsequence (rougeL),
    as Lin has it (2004). rouge-score knows Latin letters and digits."""

    def row(answer: str, wanted: str) -> list[float]:
        return [_rouge(kind).score(wanted, answer)[kind].fmeasure, 1.0]

    return row


@cache
def _rouge(kind: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # late: it brings nltk

    return RougeScorer([kind], use_stemmer=True)


def _corpus(name: str) -> Metric:
    """Of sacrebleu, over whole sets of texts: an item's row are its n-gram counts, against all of its references."""

    @cache
    def scorer() -> Any:
        from sacrebleu import metrics

        return getattr(metrics, name)()

    def row(answer: str, references: Sequence[str]) -> list[float]:
        (counts,) = scorer()._extract_corpus_statistics([answer], [[one] for one in references])
        return [float(count) for count in counts]

    def of(sums: Sums) -> Sums:
        flat = sums.reshape(-1, sums.shape[-1])
        values = [scorer()._compute_score_from_stats([int(count) for count in one]).score for one in flat]
        return np.array(values).reshape(sums.shape[:-1])

    return Metric(of, row)


METRICS: dict[str, Metric] = {
    "loss": Metric(share, more_is_better=False),
    "accuracy": Metric(share),
    "accuracy_unnormalised": Metric(share),
    "f1": Metric(macro_f1),
    "matthews": Metric(matthews),
    "pearson": Metric(pearson),
    "exact": Metric(share, best(exact)),
    "number": Metric(share, best(number)),
    "json": Metric(share, best(json_fields)),
    "regex": Metric(share),
    "rouge_1": Metric(share, best(rouge("rouge1"))),
    "rouge_2": Metric(share, best(rouge("rouge2"))),
    "rouge_l": Metric(share, best(rouge("rougeL"))),
    "bleu": _corpus("BLEU"),
    "chrf": _corpus("CHRF"),
}
"""`loss` has rows [nats, tokens]; of `regex` each task has its own pattern."""


def unfit(metric: str, wanted: str) -> str | None:
    """Why nothing could be held against this answer by the metric."""
    if metric == "number" and number_in(wanted) is None:
        return "has no number in it"
    if metric.startswith("rouge_") and any(map(str.isalpha, wanted)) and not rouge("rouge1")(wanted, wanted)[0]:
        return f"has no Latin letters or digits, which are all that {metric} reads (take chrf)"
    if metric == "json":
        try:
            json_fields("", wanted)
        except (ValueError, RecursionError):
            return "is not JSON"
    if metric == "pearson":
        rating = rating_in(wanted)
        return None if rating is not None and abs(rating) <= LARGEST else f"has no number up to {LARGEST:,}"
    return None


def rows_of(
    metric: str, answers: Sequence[str], references: Sequence[Sequence[str]], pattern: str | None
) -> list[list[float]]:
    """Of each item, for a metric of texts. An item has one reference or several."""
    row = best(matching(pattern)) if metric == "regex" and pattern is not None else METRICS[metric].text
    assert row is not None, "the task's spec allows metrics of texts alone"
    return [row(answer, several) for answer, several in zip(answers, references, strict=True)]
