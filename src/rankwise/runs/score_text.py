"""Scores as lines of text, shared by evaluations and comparisons."""

from __future__ import annotations

from collections.abc import Mapping

from rankwise.errors import some
from rankwise.runs.evaluations import ModelScores
from rankwise.runs.feature_forgetting import FeatureForgetting
from rankwise.runs.measured import Difference, Measured

MOST_LABELS = 12


def score_line(task: str, who: str, side: ModelScores, differences: Mapping[str, Difference] | None = None) -> str:
    """Format the scores of one model; for a base, with the differences of the tuned model."""
    scores = [
        f"{metric} {measured_text(one)}" + (f", tuned: {verdict_text(differences[metric])}" if differences else "")
        for metric, one in side.metrics.items()
    ]
    return f"{task}, {who}: {'; '.join(scores)}"


def measured_text(one: Measured) -> str:
    return f"{one.value:.4g} ({one.low:.4g} to {one.high:.4g})"


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


def feature_lines(one: FeatureForgetting) -> list[str]:
    """Describe what became of the features of a model of images."""
    lines = [
        f"forgetting on {one.images:,} images of {one.data}: CKA of base and tuned features {measured_text(one.cka)}; "
        "1 is unchanged up to rotation and scale, 0 is unrelated"
    ]
    if one.probe is not None:
        lines.append(
            f"a linear probe for {len(one.classes)} classes of these images is right in {one.probe.a:.1%} with the "
            f"base's features and in {one.probe.b:.1%} with the tuned model's: {verdict_text(one.probe)}"
        )
    return lines
