"""Scores as lines of text: the same words while an evaluation runs, at its end, and where two are compared."""

from __future__ import annotations

from collections.abc import Mapping

from rankwise.errors import some
from rankwise.runs.evaluations import Difference, Measured, ModelScores

MOST_LABELS = 12


def score_line(task: str, who: str, side: ModelScores, differences: Mapping[str, Difference] | None = None) -> str:
    """One line for whoever waits; of a base with what the tuned model differs by."""
    scores = [
        f"{metric} {measured_text(one)}" + (f", tuned: {verdict_text(differences[metric])}" if differences else "")
        for metric, one in side.metrics.items()
    ]
    return f"{task}, {who}: {'; '.join(scores)}"


def measured_text(one: Measured) -> str:
    return f"{one.value:.4g} ({one.low:.4g} to {one.high:.4g})"


def verdict_text(found: Difference) -> str:
    verdict = found.verdict if found.verdict != "cannot tell" else f"cannot tell with n = {found.n:,}"
    why = f"; {found.undecided}" if found.undecided else ""
    return f"{verdict}, difference {found.difference:+.4g} ({found.low:+.4g} to {found.high:+.4g}){why}"


def labels_text(labels: Mapping[str, int]) -> str:
    """Among which answers a model chooses, where the task does not say."""
    listed = some((f"{label} ({count:,})" for label, count in labels.items()), MOST_LABELS)
    return (
        f"the task names no choices, so the model chooses among the {len(labels)} different answers in the file "
        f"(rows of each in brackets): {listed}"
    )
