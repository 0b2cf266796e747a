"""Scores as sentences, for the messages of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping

from rankwise.errors import some
from rankwise.runs.evaluations import ModelScores
from rankwise.runs.measured import Difference

MOST_LABELS = 12


def score_line(task: str, who: str, side: ModelScores, differences: Mapping[str, Difference] | None = None) -> str:
    """Format the scores of one model; for a base, with the differences of the tuned model."""
    scores = [
        f"{metric} {one.shown()}" + (f", tuned: {verdict_text(differences[metric])}" if differences else "")
        for metric, one in side.metrics.items()
    ]
    return f"{task}, {who}: {'; '.join(scores)}"


def verdict_text(difference: Difference) -> str:
    verdict = difference.verdict if difference.verdict != "cannot tell" else f"cannot tell with n = {difference.n:,}"
    why = f"; {difference.undecided}" if difference.undecided else ""
    return f"{verdict}, difference {difference.difference:+.4g} ({difference.low:+.4g} to {difference.high:+.4g}){why}"


def labels_text(labels: Mapping[str, int]) -> str:
    """Describe the choices if they are the answers that occur in the file."""
    listed = some((f"{label} ({count:,})" for label, count in labels.items()), MOST_LABELS)
    return (
        f"the task names no choices, so the model chooses among the {len(labels)} different answers in the file "
        f"(number of rows in brackets): {listed}"
    )
