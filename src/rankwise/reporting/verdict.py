"""The verdict sentence of a report: what was measured, on how much, how certain it is, and what was not measured; and
warnings about evaluations whose numbers are correct but easy to misread.

A task counts by its first metric that is not a loss, or by its loss if it has no other, because a lower loss does not
mean better answers; where that metric cannot tell, by the next one that can, and the sentence names both. `cannot tell`
does not mean `no difference`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

from rankwise.config.tasks import BUILT_IN, HELD_OUT
from rankwise.config.validation import ValidationConfig
from rankwise.reporting.quantities import figure, interval, plural, share, with_interval
from rankwise.runs.data_report import DataReport
from rankwise.runs.directory import BY_REQUEST
from rankwise.runs.evaluations import Evaluation, Forgetting, ModelScores, StrengthCurve
from rankwise.runs.manifest import Results
from rankwise.runs.measured import Difference, Verdict
from rankwise.runs.snapshot import RunSnapshot

OPENING: dict[Verdict, str] = {
    "better": "Better than", "worse": "Worse than", "cannot tell": "No significant difference from",
}  # fmt: skip
FOLLOWING: dict[Verdict, str] = {"better": "better", "worse": "worse", "cannot tell": "undecided"}
TOLERANCE, LOSS, MOSTLY = 1e-9, "loss", 0.5
OF_RIGHT = ("accuracy", "exact", "exact_match", "number", "json_exact", "tool_call", "sql", "regex")
"""Shares of answers that are right as a whole."""
_Value = TypeVar("_Value")


def verdict_of(run: RunSnapshot) -> str:
    compared = {task: one for task, one in run.evaluations.items() if one.differences}
    moved = _moved(run.forgetting)
    if compared:
        return f"{_sentence(compared, run.manifest.base_model.name)}{f'; {moved}' if moved else ''}."
    if run.evaluations:
        return f"{_scored(run.evaluations)}{f'; {moved}' if moved else ''}."
    return f"{_losses(run)}{f' In addition, {moved}.' if moved else ''}"


def headline(differences: Mapping[str, Difference]) -> tuple[str, Difference]:
    """The metric that a task counts by; where it cannot tell, the first other one that is not a loss and can."""
    clear = [item for item in differences.items() if item[0] != LOSS and item[1].verdict != "cannot tell"]
    return next(iter(clear), primary(differences))


def primary(metrics: Mapping[str, _Value]) -> tuple[str, _Value]:
    """Return the metric that a task counts by."""
    return next((item for item in metrics.items() if item[0] != LOSS), None) or next(iter(metrics.items()))


def next_of(run: RunSnapshot) -> str:
    """Suggest what to measure next."""
    if run.evaluations:
        return ""
    hold = "" if run.history.losses else "Hold out rows (--held-out 50) to measure the validation loss. "
    if run.manifest.status != "finished":
        return hold
    return f"{hold}{run.learned.next_step}: rankwise evaluate {run.name}"


def remarks_of(run: RunSnapshot) -> list[str]:
    """List the caveats that a reader must know before the numbers."""
    remarks = []
    status, manifest = run.manifest.status, run.manifest
    reached = run.history.steps[-1].step if run.history.steps else 0
    of = f" of {run.history.steps[-1].steps:,}" if run.history.steps else ""
    if status == "running":
        remarks.append(
            f"This run is not finished: {plural(reached, 'step')}{of} recorded so far. It is still training, or was "
            "killed; it has no result yet."
        )
    elif status != "finished":
        why = f" ({manifest.problem})" if manifest.problem else ""
        how = "was interrupted" if status == "interrupted" else "failed"
        remarks.append(f"This run {how}{why} after {plural(reached, 'step')}{of} and has no result.")
    if shared := of_overlap(run.data_report):
        remarks.append(shared)
    of_data = run.data_report.warnings if run.data_report is not None else ()  # the data section shows these
    remarks += [f"Warning: {warning}" for warning in manifest.warnings if warning not in of_data]
    return remarks + _warnings(run)


def _warnings(run: RunSnapshot) -> list[str]:
    how = chosen_by_held_out(run.experiment.validation, run.manifest.results)
    remarks = [warning for one in run.evaluations.values() for warning in evaluation_warnings(one, how)]
    if run.strength is not None:
        remarks += strength_warnings(run.strength, how)
    if how and run.history.losses and not run.evaluations:
        remarks.append(f"The validation rows {how}, so their loss is biased downwards.")
    return remarks


def _sentence(compared: dict[str, Evaluation], base: str) -> str:
    against = _against(compared, base)
    if len(compared) == 1:
        ((task, evaluation),) = compared.items()
        metric, one = headline(evaluation.differences)
        few = one.verdict == "better" and metric in OF_RIGHT and one.b < MOSTLY
        return (
            f"{OPENING[one.verdict]} {against} on {task}: {metric} {figure(one.b)} against {figure(one.a)} "
            f"({figure(one.difference, signed=True)}, 95 % interval {interval(one.low, one.high, signed=True)}, "
            f"n = {one.n:,}){f'; {share(1 - one.b, 1)} are still wrong' * few}{_also(evaluation.differences, metric)}"
        )
    counted_by = {task: headline(evaluation.differences)[1] for task, evaluation in compared.items()}
    (first, many), *rest = counted(list(counted_by.values())).items()
    names = f" ({_names(counted_by, first)})" if rest else ""
    parts = [f"{OPENING[first]} {against} on {many} of {len(compared)} tasks{names}"]
    parts += [f"{FOLLOWING[kind]} on {count} ({_names(counted_by, kind)})" for kind, count in rest]
    ns = sorted(one.n for one in counted_by.values())
    n = f"{ns[0]:,}" if ns[0] == ns[-1] else f"{ns[0]:,} to {ns[-1]:,}"
    return f"{', '.join(parts)}; n = {n}"


def _also(differences: Mapping[str, Difference], first: str) -> str:
    """The other metrics that moved, and the one that a task counts by in any case."""
    others = [(metric, one) for metric, one in differences.items() if metric != first and (
        one.verdict != "cannot tell" or metric == primary(differences)[0])]  # fmt: skip
    return "".join(
        f"; {FOLLOWING[one.verdict]}: {metric} {figure(one.b)} against {figure(one.a)}" for metric, one in others
    )


def _against(compared: dict[str, Evaluation], base: str) -> str:
    names = {evaluation.against or base for evaluation in compared.values()}
    return names.pop() if len(names) == 1 and base not in names else "the base"


def _names(differences: dict[str, Difference], kind: Verdict) -> str:
    return ", ".join(task for task, one in differences.items() if one.verdict == kind)


def _scored(evaluations: dict[str, Evaluation]) -> str:
    parts = []
    for task, evaluation in evaluations.items():
        if evaluation.tuned.metrics:
            metric, one = primary(evaluation.tuned.metrics)
            parts.append(f"{metric} {with_interval(one)} on {task}, n = {evaluation.n:,}")
    return f"Evaluated without comparison to a base: {'; '.join(parts) or 'nothing'}"


def _moved(forgetting: Forgetting | None) -> str:
    if forgetting is None:
        return ""
    return (
        f"on text that it was not trained on, {share(forgetting.agreement, 1)} of the most likely next tokens are "
        f"still the base's (KL {figure(forgetting.kl)} nats per token, {interval(forgetting.low, forgetting.high)})"
    )


def _losses(run: RunSnapshot) -> str:
    losses = run.history.losses
    if not losses:
        return "Nothing was measured on rows that it was not trained on, so nothing is known about what it learned."
    results = run.manifest.results
    best_step = results.kept_step if results is not None else None
    first, last = losses[0], next((one for one in losses if one.step == best_step), losses[-1])
    if len(losses) == 1:
        when = "before training" if first.step == 0 else f"after step {first.step:,}"
        return (
            f"The loss on {plural(first.sequences, 'validation sequence')} was {figure(first.loss)} "
            f"{run.learned.loss_unit} {when}; it was not measured at any other time."
        )
    end = (results and results.validation_loss_after) or last.loss
    how = _way(first.loss, end)
    when = "" if last is losses[-1] else f" at the selected step {last.step:,}"
    return (
        f"The loss on {plural(last.sequences, 'validation sequence')} {how}, from {figure(first.loss)} to "
        f"{figure(end)} {run.learned.loss_unit}{when}{run.learned.unmeasured}."
    )


def _way(first: float, last: float) -> str:
    if abs(last - first) <= TOLERANCE * max(1.0, abs(first)):
        return "stayed the same"
    return "fell" if last < first else "rose"


def counted(differences: Sequence[Difference]) -> dict[Verdict, int]:
    counts = Counter(one.verdict for one in differences)
    return {kind: counts[kind] for kind in OPENING if counts[kind]}


FEW, MANY = 5, 1000
CHOOSING = ("accuracy", "f1", "matthews")
CHOICES = {
    "arc_easy": 4, "arc_challenge": 4, "hellaswag": 4, "mmlu": 4, "openbookqa": 4, "boolq": 2, "piqa": 2,
    "winogrande": 2,
}  # fmt: skip
"""Number of choices in the public tasks that have a fixed number."""


def evaluation_warnings(evaluation: Evaluation, how: str) -> list[str]:
    """List the warnings for an evaluation; `how` is how the run's held-out rows influenced its training, if at all."""
    found, items = [], plural(evaluation.n, "item")
    if evaluation.n < FEW:
        found.append(
            f"{evaluation.task}: {items} cannot show anything, and intervals over so few are too "
            f"narrow; evaluate on at least {FEW}, better on a hundred."
        )
    alike = [name for name, one in evaluation.tuned.metrics.items() if one.low == one.high]
    if alike and evaluation.n >= FEW:
        found.append(
            f"{evaluation.task}: {alike[0]} does not vary when the {items} are resampled, so its "
            f"interval has no width. It is still uncertain: up to about {3 / evaluation.n:.1%} of all such items may "
            "differ."
        )
    if evaluation.task == HELD_OUT and how:
        found.append(
            f"{HELD_OUT}: these rows {how}, so results on them are too optimistic. Evaluate on rows that took no part "
            "in the choice: rankwise evaluate RUN --task FILE"
        )
    if any(metric in CHOOSING for metric in evaluation.tuned.scores):
        found += _of_choices(evaluation)
    return found


def strength_warnings(curve: StrengthCurve, how: str) -> list[str]:
    """List the warnings for a strength curve, whose recommendation is also chosen by these rows."""
    if not (curve.own_rows and how):
        return []
    return [
        f"strength: the rows it was measured on {how}, so the gain is too optimistic. Measure on rows that took no "
        "part in the choice: rankwise strength RUN --data FILE"
    ]


def chosen_by_held_out(validation: ValidationConfig, results: Results | None) -> str:
    """Say what the held-out rows decided during training; empty if nothing."""
    if validation.keep == "best":
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
            f"{evaluation.task}: an accuracy measured on {plural(evaluation.n, 'item')} can be wrong by "
            f"{_half_width(evaluation.n)} percentage points; on {MANY:,} items it would be {_half_width(MANY)}."
        )
    least, base = chance(evaluation), evaluation.base
    accuracy = base.metrics.get("accuracy") if base is not None else None
    if least is not None and accuracy is not None and accuracy.low <= least:
        found.append(
            f"{evaluation.task}: the base's accuracy of {accuracy.shown('.3f')} is not clearly above chance "
            f"({least:.3f}), so there is little to lose."
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


def _half_width(n: int) -> int:
    """Return half the width of the 95 % interval of a share of one half, the widest case."""
    return round(98 / n**0.5)
