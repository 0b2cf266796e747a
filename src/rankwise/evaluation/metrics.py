"""Metrics: sums over items, and a formula over the sums.

    value = of(sum of the items' sums),   k numbers per item

So the metric of any selection of items, such as a bootstrap sample, is the same formula over other sums, and so are its
interval and its difference between two models (intervals.py). Nothing depends on the order of the items. sacrebleu and
rouge-score compute BLEU, chrF and ROUGE. An item may have several references: sacrebleu has its own rule for them, and
all other metrics use the reference that matches the answer best.

Classes, from how often each was predicted, how often it was true, and how often both:

    recall(c) = right(c) / actual(c)      precision(c) = right(c) / predicted(c)
    F1(c) = 2 right(c) / (predicted(c) + actual(c))

The stored row of an item is the pair [predicted, actual] of class numbers, and its sums are [right, predicted, actual]
of each class that occurs. So a thousand classes take two numbers of a file for each item. The sums of a text's spans
are the same three, over all types together or for each type.

Calibration, whether a classifier that is 80 % sure is right 80 % of the time:

    error = sum over bins of |confidence of its items - number of hits among them| / number of all items

The confidence of an item is the probability of its predicted class, and the bins are fifteen intervals of equal width
(Guo et al. 2017: expected calibration error). The stored row of an item is [confidence, hit], and its sums are one gap
for each bin, so a bootstrap sample of items needs no probabilities. Chance alone makes the error of a few items larger
than 0; `error_of_calibrated` is how large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from rankwise.config.tasks import TaskConfig
from rankwise.errors import EvaluationError
from rankwise.evaluation import scoring
from rankwise.evaluation.scoring import NUMBER, Row, json_fields, number
from rankwise.system.extras import need_extra

Sums = NDArray[np.float64]
Formula = Callable[[Sums], Sums]
Rows = list[Row]
PairRow = Callable[[str, str], Row]
"""Makes the row of an item from its answer and its reference."""
TextRow = Callable[[str, Sequence[str]], Row]
"""Makes the row of an item from its answer and all its references."""
ScoreFunction = Callable[[str, str], float]
"""Scores an answer by its reference: a number of which more is better, or whether it is right."""
BINS = 15
EDGES = np.linspace(0.0, 1.0, BINS + 1)
DRAWS, SEED = 1000, 0


def bins_of(confidences: Sums) -> NDArray[np.int64]:
    """Return the number of each confidence's bin; a bin contains its upper edge."""
    return np.clip(np.searchsorted(EDGES, confidences, "left") - 1, 0, BINS - 1)


def calibration_table(rows: Sums) -> Sums:
    """Turn rows [confidence, hit] into sums (N, 1 + BINS): 1, and the item's gap in the column of its bin."""
    table = np.zeros((len(rows), 1 + BINS))
    table[:, 0] = 1.0
    table[np.arange(len(rows)), 1 + bins_of(rows[:, 0])] = rows[:, 0] - rows[:, 1]
    return table


def calibration_error(sums: Sums) -> Sums:
    return np.abs(sums[..., 1:]).sum(-1) / np.maximum(sums[..., 0], 1)


def error_of_calibrated(confidences: Sums) -> float:
    """Compute the mean error of a perfectly calibrated classifier that is as confident on as many items."""
    items, generator, errors = len(confidences), np.random.default_rng(SEED), list[float]()
    for _ in range(DRAWS):
        rows = np.stack((confidences, (generator.random(items) < confidences).astype(np.float64)), 1)
        errors.append(float(calibration_error(calibration_table(rows).sum(0))))
    return float(np.mean(errors))


def class_table(rows: Sums) -> Sums:
    """Turn pairs (N, 2) into sums (N, 3 C) of the C classes that occur; rows that are sums already stay."""
    if rows.shape[1] != 2:
        return rows
    classes, numbers = np.unique(rows, return_inverse=True)
    predicted, actual = numbers.reshape(rows.shape).T
    table, items = np.zeros((len(rows), 3 * len(classes))), np.arange(len(rows))
    table[items, 3 * predicted + 1] = table[items, 3 * actual + 2] = 1.0
    table[items, 3 * actual] = predicted == actual
    return table


def f1_of_classes(sums: Sums) -> Sums:
    """Compute F1 of each class (..., C), nan for a class that never occurs."""
    return _share(2 * sums[..., ::3], sums[..., 1::3] + sums[..., 2::3], np.nan)


def macro_f1(sums: Sums) -> Sums:
    """Average F1 over the classes that are predicted or true somewhere."""
    each = f1_of_classes(sums)
    return np.nansum(each, -1) / np.maximum((~np.isnan(each)).sum(-1), 1)


def balanced_accuracy(sums: Sums) -> Sums:
    """Average recall over the classes that are true somewhere."""
    right, actual = sums[..., ::3], sums[..., 2::3]
    return _share(right, actual).sum(-1) / np.maximum((actual > 0).sum(-1), 1)


def matthews(sums: Sums) -> Sums:
    """Compute the correlation of predicted and actual classes (Gorodkin 2004); 0 if one is constant."""
    right, predicted, actual = (sums[..., part::3] for part in range(3))
    n = actual.sum(-1)
    shared = right.sum(-1) * n - (predicted * actual).sum(-1)
    spread = (n**2 - (predicted**2).sum(-1)) * (n**2 - (actual**2).sum(-1))
    return np.where(spread > 0, shared / np.sqrt(np.where(spread > 0, spread, 1)), 0.0)


def figures_of_types(sums: Sums) -> Sums:
    """(…, 3 T) sums of T types to their precisions, recalls and F1 (…, 3 T), nan where there is nothing to divide."""
    right, predicted, actual = (sums[..., part::3] for part in range(3))
    precision, recall = _share(right, predicted, np.nan), _share(right, actual, np.nan)
    return np.concatenate((precision, recall, f1_of_classes(sums)), -1)


def _of_spans(figure: int) -> Formula:
    """The precision (0), recall (1) or F1 (2) of all types together, 0 where there is nothing to divide."""
    return lambda sums: np.nan_to_num(figures_of_types(sums)[..., figure])


def _share(above: Sums, below: Sums, nothing: float = 0.0) -> Sums:
    return np.where(below > 0, above / np.maximum(below, 1), nothing)


SECONDS = 1.0
"""Time limit for matching one pattern against one text."""
LARGEST = 1_000_000_000_000
"""Largest rating that a reference may have."""


@dataclass(frozen=True)
class Metric:
    """`of` maps sums (..., k) to values (...); `text` maps an answer and its references to an item's row. `table` maps
    the stored rows of all items to their sums, where these are longer than the rows."""

    of: Formula
    text: TextRow | None = None
    more_is_better: bool = True
    table: Formula = lambda rows: rows

    def value(self, rows: Sequence[Sequence[float]]) -> float:
        """Compute the metric of all items, from their stored rows."""
        return float(self.of(self.table(np.asarray(rows, dtype=np.float64)).sum(0)))


def means(values: Iterable[float]) -> Rows:
    """The rows [value, 1] of values whose metric is their mean."""
    return [[float(value), 1.0] for value in values]


def share(sums: Sums) -> Sums:
    """Return earned / possible, for rows [earned, possible]."""
    return sums[..., 0] / np.maximum(sums[..., 1], 1e-300)


def pearson(sums: Sums) -> Sums:
    """Compute Pearson's correlation, for rows [1, x, y, xx, yy, xy]; 0 if one is constant, nan if one is not a
    number."""
    n, x, y, xx, yy, xy = (sums[..., part] for part in range(6))
    spread = (n * xx - x**2) * (n * yy - y**2)
    sure = ~(spread <= 1e-12 * np.maximum(n * xx * n * yy, 1e-300))  # false for nan too
    return np.where(sure, (n * xy - x * y) / np.sqrt(np.where(sure, spread, 1)), 0.0)


def number_row(predicted: float, actual: float) -> Row:
    """Make an item's row for `pearson`."""
    return [1.0, predicted, actual, predicted**2, actual**2, predicted * actual]


def exact(answer: str, target: str) -> Row:
    """Compare two texts exactly, apart from surrounding white space."""
    return [float(answer.strip() == target.strip()), 1.0]


def rating_in(text: str) -> float | None:
    """Return the first number in a text, if it is finite."""
    matched = NUMBER.search(text)
    value = float(matched[0].replace(",", "")) if matched else math.nan
    return value if math.isfinite(value) else None


def rating_rows(answers: Sequence[str], target: Sequence[str]) -> Rows:
    """Make the rows for `pearson`. Answers are clipped to the range of the references, and an answer without a number
    counts as the lowest reference, since correlations do not depend on where a scale begins."""
    actual = [rating_in(one) or 0.0 for one in target]
    low, high = min(actual), max(actual)
    given = [rating_in(answer) for answer in answers]
    return [
        number_row(low if rating is None else min(max(rating, low), high), one)
        for rating, one in zip(given, actual, strict=True)
    ]


def matching(pattern: str) -> PairRow:
    """Make a metric from a pattern: whether its groups match the same texts in answer and reference; without groups,
    whether it matches the answer."""
    compiled = regex.compile(pattern)

    def row(answer: str, target: str) -> Row:
        matched = searched(compiled, answer)
        if matched is None or not compiled.groups:
            return [float(matched is not None), 1.0]
        return [float(matched == searched(compiled, target)), 1.0]

    return row


def searched(compiled: regex.Pattern[str], text: str) -> tuple[str | None, ...] | None:
    try:
        matched = compiled.search(text, timeout=SECONDS)
    except TimeoutError:
        raise EvaluationError(
            f"the pattern {compiled.pattern!r} takes more than {SECONDS:.0f} s on one answer; use a simpler one."
        ) from None
    return matched.groups() if matched else None


def best(row: PairRow, choose: Callable[..., Row] = max) -> TextRow:
    """Score an answer against each reference and return the [earned, possible] with the largest share, or by `min` with
    the smallest."""

    def of_references(answer: str, references: Sequence[str]) -> Row:
        return choose((row(answer, one) for one in references), key=lambda sums: sums[0] / (sums[1] or 1.0))

    return of_references


def rouge(kind: str) -> PairRow:
    """Make a ROUGE metric (Lin 2004): F1 of shared stemmed words (rouge1), word pairs (rouge2) or the longest common
    subsequence (rougeL). rouge-score only reads Latin letters and digits."""

    def row(answer: str, target: str) -> Row:
        return [_rouge(kind).score(target, answer)[kind].fmeasure, 1.0]

    return row


@cache
def _rouge(kind: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # imported late, because it imports nltk

    return RougeScorer([kind], use_stemmer=True)


def _corpus(name: str) -> Metric:
    """Make a corpus metric of sacrebleu; an item's row holds its n-gram counts against all references."""

    @cache
    def scorer() -> Any:
        need_library(name.lower())  # also where stored scores are compared
        from sacrebleu import metrics

        return getattr(metrics, name)()

    def row(answer: str, references: Sequence[str]) -> Row:
        (counts,) = scorer()._extract_corpus_statistics([answer], [[one] for one in references])
        return [float(count) for count in counts]

    def of(sums: Sums) -> Sums:
        flat = sums.reshape(-1, sums.shape[-1])
        values = [scorer()._compute_score_from_stats([int(count) for count in one]).score for one in flat]
        return np.array(values).reshape(sums.shape[:-1])

    return Metric(of, row)


MORE, LESS = Metric(share), Metric(share, more_is_better=False)
"""Means, of which more or less is better."""
METRICS: dict[str, Metric] = {
    "loss": LESS,
    "cross_entropy": LESS,
    "mean_squared_error": LESS,
    "accuracy": MORE,
    "accuracy_unnormalised": MORE,
    "balanced_accuracy": Metric(balanced_accuracy, table=class_table),
    "f1": Metric(macro_f1, table=class_table),
    "matthews": Metric(matthews, table=class_table),
    "micro_f1": Metric(_of_spans(2)),
    "exact_match": MORE,
    "span_f1": Metric(_of_spans(2)),
    "span_precision": Metric(_of_spans(0)),
    "span_recall": Metric(_of_spans(1)),
    "token_accuracy": MORE,
    "token_cross_entropy": LESS,
    "calibration_error": Metric(calibration_error, more_is_better=False, table=calibration_table),
    "pearson": Metric(pearson),
    "spearman": Metric(pearson),
    "preference_accuracy": MORE,
    "margin": MORE,
    "likelihood_accuracy": MORE,
    "preference_loss": LESS,
    "kl_from_base": LESS,
    "exact": Metric(share, best(exact)),
    "number": Metric(share, best(number)),
    "json": Metric(share, best(json_fields)),
    "json_exact": Metric(share, best(scoring.json_exact)),
    "json_valid": Metric(share, best(scoring.json_valid)),
    "tool_call": Metric(share, best(scoring.tool_call)),
    "tool_function": Metric(share, best(scoring.tool_function)),
    "tool_arguments": Metric(share, best(scoring.tool_arguments)),
    "tool_missing": Metric(share, best(scoring.tool_missing, min), more_is_better=False),
    "tool_needless": Metric(share, best(scoring.tool_needless, min), more_is_better=False),
    "sql": MORE,
    "regex": MORE,
    "rouge_1": Metric(share, best(rouge("rouge1"))),
    "rouge_2": Metric(share, best(rouge("rouge2"))),
    "rouge_l": Metric(share, best(rouge("rougeL"))),
    "bleu": _corpus("BLEU"),
    "chrf": _corpus("CHRF"),
}
"""All metrics. Rows of `loss` are [nats, tokens], those of metrics of pairs [value, 1]; for `regex`, each task has its
own pattern, and for `sql`, each item its database; `spearman` is the correlation of ranks among all items."""


LIBRARIES = {
    "rouge_1": "rouge_score", "rouge_2": "rouge_score", "rouge_l": "rouge_score", "bleu": "sacrebleu",
    "chrf": "sacrebleu",
}  # fmt: skip
"""What computes a metric that is not our own."""


def need_library(metric: str) -> None:
    if metric in LIBRARIES:
        need_extra(LIBRARIES[metric], f"the score {metric}", "scores", EvaluationError)


def metric_named(name: str) -> Metric:
    """The metric of this name; any other name is that of a function of the user's, whose metric is a mean."""
    return METRICS.get(name, MORE)


def rows_of_function(
    name: str, function: ScoreFunction, answers: Sequence[str], references: Sequence[Sequence[str]]
) -> Rows:
    """What a function of the user's says of each answer and its references; the best of several counts."""

    def row(answer: str, reference: str) -> Row:
        try:
            value = function(answer, reference)
        except Exception as error:
            raise EvaluationError(
                f"the score {name} failed for the answer {answer[:60]!r}: {type(error).__name__}: {error}. A model may "
                "write anything; return 0 for such an answer."
            ) from error
        if not isinstance(value, (bool, int, float, np.number)) or not math.isfinite(value):
            raise EvaluationError(
                f"the score {name} returned {value!r} for the answer {answer[:40]!r}; return a number, or whether the "
                "answer is right."
            )
        return [float(value), 1.0]

    return [best(row)(answer, several) for answer, several in zip(answers, references, strict=True)]


def unfit(metric: str, target: str) -> str | None:
    """Say why the metric cannot score answers against this reference; None if it can."""
    if metric == "number" and scoring.number_and_unit(target) is None:
        return "contains no number"
    if metric.startswith("rouge_") and any(map(str.isalpha, target)) and not rouge("rouge1")(target, target)[0]:
        return f"has no Latin letters or digits, which are all that {metric} reads (use chrf)"
    if metric in ("json", "json_exact"):
        try:
            json_fields("", target)
        except (ValueError, RecursionError):
            return "is not JSON"
    if metric == "pearson":
        rating = rating_in(target)
        return None if rating is not None and abs(rating) <= LARGEST else f"contains no number up to {LARGEST:,}"
    return None


OF_TASKS: dict[str, Callable[[TaskConfig], PairRow]] = {
    "regex": lambda task: matching(task.pattern or ""),
    "number": lambda task: partial(number, tolerance=task.tolerance or 0.0, units=task.units),
}
"""Metrics that a task has settings for."""


def rows_of(metric: str, answers: Sequence[str], references: Sequence[Sequence[str]], task: TaskConfig | None) -> Rows:
    """Make the rows of all items for a text metric; each item has one or more references."""
    row = best(OF_TASKS[metric](task)) if task is not None and metric in OF_TASKS else METRICS[metric].text
    assert row is not None, "the task config only allows text metrics here"
    return [row(answer, several) for answer, several in zip(answers, references, strict=True)]
