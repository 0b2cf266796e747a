"""The verdict sentence of a report: what was measured, on how much, how certain it is, and what was not measured.

A task counts by its first metric that is not a loss, or by its loss if it has no other, because a lower loss does not
mean better answers. `cannot tell` does not mean `no difference`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

from rankwise.reporting.quantities import figure, interval, plural
from rankwise.runs.evaluations import Evaluation, Forgetting
from rankwise.runs.measured import Difference, Verdict
from rankwise.runs.snapshot import RunSnapshot
from rankwise.runs.warnings import chosen_by_held_out, evaluation_warnings, of_overlap, strength_warnings

ORDER: tuple[Verdict, ...] = ("better", "worse", "cannot tell")
WHOLE, LOSS = 1e-9, "loss"
_Value = TypeVar("_Value")


def verdict_of(run: RunSnapshot) -> str:
    compared = {task: one for task, one in run.evaluations.items() if one.differences}
    moved = _moved(run.forgetting)
    if compared:
        return f"{_sentence(compared, run.manifest.base_model.name)}{f'; {moved}' if moved else ''}."
    if run.evaluations:
        return f"{_scored(run.evaluations)}{f'; {moved}' if moved else ''}."
    return f"{_losses(run)}{f' In addition, {moved}.' if moved else ''}"


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
    what = "Score its predictions, with intervals" if _predicts(run) else "Compare its answers with those of the base"
    return f"{hold}{what}: rankwise evaluate {run.name}"


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
    experiment, results = run.experiment, run.manifest.results
    remarks = [warning for one in run.evaluations.values() for warning in evaluation_warnings(one, experiment, results)]
    if run.strength is not None:
        remarks += strength_warnings(run.strength, experiment, results)
    how = chosen_by_held_out(experiment, results)
    if how and run.history.losses and not run.evaluations:
        remarks.append(f"The validation rows {how}, so their loss is biased downwards.")
    return remarks


def _sentence(compared: dict[str, Evaluation], base: str) -> str:
    if len(compared) == 1:
        ((task, evaluation),) = compared.items()
        metric, one = primary(evaluation.differences)
        against = _against(compared, base)
        means: dict[Verdict, str] = {
            "better": f"Better than {against} on {task}",
            "worse": f"Worse than {against} on {task}",
            "cannot tell": f"No significant difference from {against} on {task}",
        }
        return (
            f"{means[one.verdict]}: {metric} {figure(one.b)} against {figure(one.a)} "
            f"({figure(one.difference, signed=True)}, 95 % interval {interval(one.low, one.high, signed=True)}, "
            f"n = {one.n:,}){_also(evaluation.differences, metric)}"
        )
    verdicts: dict[str, Verdict] = {
        task: primary(evaluation.differences)[1].verdict for task, evaluation in compared.items()
    }
    counts = Counter(verdicts.values())
    kinds: list[Verdict] = [kind for kind in ORDER if counts[kind]]
    first, rest = kinds[0], kinds[1:]
    opening = {"better": "Better than", "worse": "Worse than", "cannot tell": "No significant difference from"}
    following = {"better": "better", "worse": "worse", "cannot tell": "undecided"}
    parts = [
        f"{opening[first]} {_against(compared, base)} on {counts[first]} of {len(compared)} tasks"
        + (f" ({_names(verdicts, first)})" if rest else "")
    ]
    parts += [f"{following[kind]} on {counts[kind]} ({_names(verdicts, kind)})" for kind in rest]
    ns = sorted(primary(evaluation.differences)[1].n for evaluation in compared.values())
    n = f"{ns[0]:,}" if ns[0] == ns[-1] else f"{ns[0]:,} to {ns[-1]:,}"
    return f"{', '.join(parts)}; n = {n}"


def _also(differences: Mapping[str, Difference], first: str) -> str:
    """The other metrics that moved."""
    moved = [(metric, one) for metric, one in differences.items() if metric != first and one.verdict != "cannot tell"]
    return "".join(f"; {one.verdict}: {metric} {figure(one.b)} against {figure(one.a)}" for metric, one in moved)


def _against(compared: dict[str, Evaluation], base: str) -> str:
    names = {evaluation.against or base for evaluation in compared.values()}
    return names.pop() if len(names) == 1 and base not in names else "the base"


def _names(verdicts: dict[str, Verdict], kind: Verdict) -> str:
    return ", ".join(task for task, one in verdicts.items() if one == kind)


def _scored(evaluations: dict[str, Evaluation]) -> str:
    parts = []
    for task, evaluation in evaluations.items():
        if evaluation.tuned.metrics:
            metric, one = primary(evaluation.tuned.metrics)
            parts.append(
                f"{metric} {figure(one.value)} ({interval(one.low, one.high)}) on {task}, n = {evaluation.n:,}"
            )
    return f"Evaluated without comparison to a base: {'; '.join(parts) or 'nothing'}"


def _moved(forgetting: Forgetting | None) -> str:
    if forgetting is None:
        return ""
    return (
        f"on text that it was not trained on, it moved from the base by {figure(forgetting.kl)} nats per "
        f"token (KL, "
        f"{interval(forgetting.low, forgetting.high)})"
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
            f"The loss on {plural(first.sequences, 'validation sequence')} was {figure(first.loss)} {run.loss_unit} "
            f"{when}; it was not measured at any other time."
        )
    how = _way(first.loss, last.loss)
    when = "" if last is losses[-1] else f" at the selected step {last.step:,}"
    return (
        f"The loss on {plural(last.sequences, 'validation sequence')} {how}, from {figure(first.loss)} to "
        f"{figure(last.loss)} {run.loss_unit}{when}"
        + ("." if _predicts(run) else "; whether its answers are better was not measured.")
    )


def _predicts(run: RunSnapshot) -> bool:
    """Whether it is a classifier, which writes no answers."""
    return run.data_report is not None and run.data_report.targets is not None


def _way(first: float, last: float) -> str:
    if abs(last - first) <= WHOLE * max(1.0, abs(first)):
        return "stayed the same"
    return "fell" if last < first else "rose"


def counted(differences: Sequence[Difference]) -> dict[Verdict, int]:
    counts = Counter(one.verdict for one in differences)
    return {kind: counts[kind] for kind in ORDER if counts[kind]}
