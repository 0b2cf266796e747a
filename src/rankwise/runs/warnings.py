"""Warnings about evaluations whose numbers are correct but easy to misread."""

from __future__ import annotations

from collections import Counter

from rankwise.config.experiment import Experiment
from rankwise.config.tasks import BUILT_IN, HELD_OUT
from rankwise.runs.data_report import DataReport
from rankwise.runs.end_request import BY_REQUEST
from rankwise.runs.evaluations import Evaluation, ModelScores, StrengthCurve
from rankwise.runs.manifest import Results

FEW, MANY = 5, 1000
CHOOSING = ("accuracy", "f1", "matthews")
CHOICES = {
    "arc_easy": 4, "arc_challenge": 4, "hellaswag": 4, "mmlu": 4, "openbookqa": 4, "boolq": 2, "piqa": 2,
    "winogrande": 2,
}  # fmt: skip
"""Number of choices in the public tasks that have a fixed number."""


def evaluation_warnings(evaluation: Evaluation, experiment: Experiment | None, results: Results | None) -> list[str]:
    """List the warnings for an evaluation; `experiment` and `results` belong to the evaluated run."""
    found = []
    if evaluation.n < FEW:
        found.append(
            f"{evaluation.task}: {_items(evaluation.n)} cannot show anything, and intervals over so few are too "
            f"narrow; evaluate on at least {FEW}, better on a hundred."
        )
    alike = [name for name, one in evaluation.tuned.metrics.items() if one.low == one.high]
    if alike and evaluation.n >= FEW:
        found.append(
            f"{evaluation.task}: {alike[0]} does not vary when the {_items(evaluation.n)} are resampled, so its "
            f"interval has no width. It is still uncertain: up to about {3 / evaluation.n:.1%} of all such items may "
            "differ."
        )
    if evaluation.task == HELD_OUT and experiment is not None and (how := chosen_by_held_out(experiment, results)):
        found.append(
            f"{HELD_OUT}: these rows {how}, so results on them are too optimistic. Evaluate on rows that took no part "
            "in the choice: rankwise evaluate RUN --task FILE"
        )
    if any(metric in CHOOSING for metric in evaluation.tuned.scores):
        found += _of_choices(evaluation)
    return found


def strength_warnings(curve: StrengthCurve, experiment: Experiment, results: Results | None) -> list[str]:
    """List the warnings for a strength curve, whose recommendation is also chosen by these rows."""
    how = chosen_by_held_out(experiment, results) if curve.own_rows else ""
    if not how:
        return []
    return [
        f"strength: the rows it was measured on {how}, so the gain is too optimistic. Measure on rows that took no "
        "part in the choice: rankwise strength RUN --data FILE"
    ]


def chosen_by_held_out(experiment: Experiment, results: Results | None) -> str:
    """Say what the held-out rows decided during training; empty if nothing."""
    if experiment.validation.keep == "best":
        return "chose the step that was kept (validation.keep)"
    if results is not None and results.ended_early and not results.ended_early.startswith(BY_REQUEST):
        return "decided when training ended (validation.patience)"
    return ""


def of_overlap(data_report: DataReport | None) -> str:
    """Describe the overlap of validation and training rows; empty if there is none."""
    both = data_report.overlap if data_report is not None else None
    if both is None or not both.exact + both.near:
        return ""
    shared = "image" if data_report is not None and data_report.image_processing is not None else "prompt"
    return (
        f"{both.exact:,} of the {both.of:,} validation rows have the same {shared} as a training row, and "
        f"{both.near:,} nearly the same: their loss underestimates the loss on new rows."
    )


def _of_choices(evaluation: Evaluation) -> list[str]:
    found = []
    clear = any(one.verdict != "cannot tell" for name, one in evaluation.differences.items() if name in CHOOSING)
    if evaluation.n < MANY and not clear:
        found.append(
            f"{evaluation.task}: an accuracy measured on {_items(evaluation.n)} can be wrong by "
            f"{_points(evaluation.n)} percentage points; on {MANY:,} items it would be {_points(MANY)}."
        )
    least, base = chance(evaluation), evaluation.base
    accuracy = base.metrics.get("accuracy") if base is not None else None
    if least is not None and accuracy is not None and accuracy.low <= least:
        found.append(
            f"{evaluation.task}: the base's accuracy of {accuracy.value:.3f} ({accuracy.low:.3f} to "
            f"{accuracy.high:.3f}) is not clearly above chance ({least:.3f}), so there is little to lose."
        )
    return found


def chance(evaluation: Evaluation) -> float | None:
    """Return the accuracy of constant or random choices; None if the number of choices is unknown."""
    listed = evaluation.settings.get("choices")
    many = len(listed) if isinstance(listed, list) and listed else _choices_of_public(evaluation)
    shares = [1 / many] if many else []
    frequent = _most_frequent(evaluation.tuned)
    if frequent and evaluation.n:
        shares.append(frequent / evaluation.n)
    return max(shares, default=None)


def _choices_of_public(evaluation: Evaluation) -> int | None:
    """Return the number of choices of a public task, if the prompt is the public one too."""
    same = evaluation.settings.get("ask") == BUILT_IN.get(evaluation.task, {}).get("ask")
    return CHOICES.get(evaluation.task) if same else None


def _most_frequent(side: ModelScores) -> float:
    """Return the number of items of the most frequent class, if a class metric was computed. Its rows are pairs
    [predicted, actual], and in older files [right, predicted, actual] of each class."""
    rows = next((side.scores[metric].sums for metric in ("f1", "matthews") if metric in side.scores), [])
    widths = {len(row) for row in rows}
    if widths == {2}:
        return float(max(Counter(row[1] for row in rows).values()))
    if len(widths) == 1 and min(widths) and min(widths) % 3 == 0:
        return max(sum(row[at] for row in rows) for at in range(2, len(rows[0]), 3))
    return 0.0


def _points(n: int) -> int:
    """Return half the width of the 95 % interval of a share of one half, the widest case."""
    return round(98 / n**0.5)


def _items(n: int) -> str:
    return f"{n:,} item{'s' if n != 1 else ''}"
