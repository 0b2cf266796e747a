"""The one sentence: what was measured, on how much, and how sure it is. What was not measured is said, and how to.

A task counts by its first metric that is not a loss, and by its loss only where it has no other: a lower loss is not
yet a better answer. `cannot tell` is not `no difference`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

from rankwise.reporting.quantities import figure, interval, plural
from rankwise.runs.evaluations import Difference, Evaluation, Forgetting, Verdict
from rankwise.runs.opened import OpenedRun
from rankwise.runs.warnings import chosen_by_held_out, evaluation_warnings, of_overlap, strength_warnings

ORDER: tuple[Verdict, ...] = ("better", "worse", "cannot tell")
WHOLE, LOSS = 1e-9, "loss"
_Value = TypeVar("_Value")


def verdict_of(run: OpenedRun) -> str:
    compared = {task: one for task, one in run.evaluations.items() if one.differences}
    moved = _moved(run.forgetting)
    if compared:
        return f"{_sentence(compared, run.manifest.base_model.name)}{f'; {moved}' if moved else ''}."
    if run.evaluations:
        return f"{_scored(run.evaluations)}{f'; {moved}' if moved else ''}."
    return f"{_losses(run)}{f' Beside that, {moved}.' if moved else ''}"


def primary(metrics: Mapping[str, _Value]) -> tuple[str, _Value]:
    """The metric that a task counts by."""
    return next((item for item in metrics.items() if item[0] != LOSS), None) or next(iter(metrics.items()))


def next_of(run: OpenedRun) -> str:
    """What would say more."""
    if run.evaluations:
        return ""
    hold = "" if run.history.losses else "Hold rows out (--held-out 50) to see the loss on what it does not train on. "
    if run.manifest.status != "finished":
        return hold
    return f"{hold}To measure its answers against the base: rankwise evaluate {run.name}"


def remarks_of(run: OpenedRun) -> list[str]:
    """What a reader must know before the numbers."""
    found = []
    status, manifest = run.manifest.status, run.manifest
    reached = run.history.steps[-1].step if run.history.steps else 0
    of = f" of {run.history.steps[-1].steps:,}" if run.history.steps else ""
    if status == "running":
        found.append(
            f"This run is not finished: {plural(reached, 'step')}{of} recorded so far. It is still training, or was "
            "ended from outside; there is nothing to use yet."
        )
    elif status != "finished":
        why = f" ({manifest.problem})" if manifest.problem else ""
        how = "was interrupted" if status == "interrupted" else "failed"
        found.append(f"This run {how}{why} after {plural(reached, 'step')}{of}, and left nothing to use.")
    if shared := of_overlap(run.data_report):
        found.append(shared)
    of_data = run.data_report.warnings if run.data_report is not None else ()  # those are shown beside the rows
    found += [f"Warning: {warning}" for warning in manifest.warnings if warning not in of_data]
    return found + _cautions(run)


def _cautions(run: OpenedRun) -> list[str]:
    experiment, results = run.experiment, run.manifest.results
    found = [said for one in run.evaluations.values() for said in evaluation_warnings(one, experiment, results)]
    if run.strength is not None:
        found += strength_warnings(run.strength, experiment, results)
    how = chosen_by_held_out(experiment, results)
    if how and run.history.losses and not run.evaluations:
        found.append(f"The held-out rows {how}, so the loss on them flatters.")
    return found


def _sentence(compared: dict[str, Evaluation], base: str) -> str:
    if len(compared) == 1:
        ((task, evaluation),) = compared.items()
        metric, one = primary(evaluation.differences)
        against = _against(compared, base)
        means: dict[Verdict, str] = {
            "better": f"Better than {against} on {task}",
            "worse": f"Worse than {against} on {task}",
            "cannot tell": f"No difference from {against} can be told on {task}",
        }
        return (
            f"{means[one.verdict]}: {metric} {figure(one.b)} against {figure(one.a)} "
            f"({figure(one.difference, signed=True)}, 95 % interval {interval(one.low, one.high, signed=True)}, "
            f"n = {one.n:,})"
        )
    verdicts: dict[str, Verdict] = {
        task: primary(evaluation.differences)[1].verdict for task, evaluation in compared.items()
    }
    counts = Counter(verdicts.values())
    found: list[Verdict] = [kind for kind in ORDER if counts[kind]]
    first, rest = found[0], found[1:]
    opening = {"better": "Better than", "worse": "Worse than", "cannot tell": "Not to be told from"}
    following = {"better": "better", "worse": "worse", "cannot tell": "undecided"}
    parts = [
        f"{opening[first]} {_against(compared, base)} on {counts[first]} of {len(compared)} tasks"
        + (f" ({_names(verdicts, first)})" if rest else "")
    ]
    parts += [f"{following[kind]} on {counts[kind]} ({_names(verdicts, kind)})" for kind in rest]
    ns = sorted(primary(evaluation.differences)[1].n for evaluation in compared.values())
    n = f"{ns[0]:,}" if ns[0] == ns[-1] else f"{ns[0]:,} to {ns[-1]:,}"
    return f"{', '.join(parts)}; n = {n}"


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
    return f"Scored, and not compared with a base: {'; '.join(parts) or 'nothing'}"


def _moved(forgetting: Forgetting | None) -> str:
    if forgetting is None:
        return ""
    return (
        f"on text that is not among its files it moved from the base by {figure(forgetting.kl)} nats per token "
        f"(KL, {interval(forgetting.low, forgetting.high)})"
    )


def _losses(run: OpenedRun) -> str:
    losses = run.history.losses
    if not losses:
        return "Nothing was measured on rows that it was not trained on, so nothing can be said about what it learned."
    results = run.manifest.results
    kept = results.kept_step if results is not None else None
    first, last = losses[0], next((one for one in losses if one.step == kept), losses[-1])
    if len(losses) == 1:
        when = "before training" if first.step == 0 else f"after step {first.step:,}"
        return (
            f"The loss on {plural(first.documents, 'held-out document')} was {figure(first.loss)} nats per learned "
            f"token {when}, and was measured no other time."
        )
    how = _way(first.loss, last.loss)
    when = "" if last is losses[-1] else f" after step {last.step:,}, which was kept"
    return (
        f"The loss on {plural(last.documents, 'document')} it was not trained on {how}, from {figure(first.loss)} to "
        f"{figure(last.loss)} nats per learned token{when}; whether its answers are better was not measured."
    )


def _way(first: float, last: float) -> str:
    if abs(last - first) <= WHOLE * max(1.0, abs(first)):
        return "stayed the same"
    return "fell" if last < first else "rose"


def counted(differences: Sequence[Difference]) -> dict[Verdict, int]:
    found = Counter(one.verdict for one in differences)
    return {kind: found[kind] for kind in ORDER if found[kind]}
