"""What a classifier says of texts: the probability of each class, or a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rankwise.data.batches import Batch
from rankwise.objectives.objective import Classifier
from rankwise.runs.row_facts import TargetFacts
from rankwise.text.tokenize import Tokens

TOKENS_AT_ONCE = 4096
Done = Callable[[int], None]
Outputs = Callable[[Classifier, nn.Module, Sequence[Tokens], Done | None], Any]
"""What a classifier says of rows, in their order: `outputs_of`, or the same by several processes."""
THRESHOLD = 0.5
"""Where a row may have several classes, the probability above which a class is predicted."""


def probability_column(name: str) -> str:
    """The column of a class's probability."""
    return f"probability_{name}"


@dataclass(frozen=True)
class Prediction:
    """`label` is the likeliest class; without classes, `value` is the predicted number."""

    label: str | None
    value: float | None
    probabilities: dict[str, float]
    """Of every class, which sum to 1 unless a row may have several."""
    labels: list[str] | None = None
    """Where a row may have several classes: those with a probability above THRESHOLD."""

    def as_columns(self, column: str) -> dict[str, Any]:
        """The prediction, and the probability of each class beside it."""
        shares = {probability_column(name): round(share, 6) for name, share in self.probabilities.items()}
        labels = self.label if self.labels is None else self.labels
        return {column: labels if labels is not None else self.value, **shares}


def predictions(
    objective: Classifier, module: nn.Module, rows: Sequence[Tokens], done: Callable[[int], None] | None = None
) -> list[Prediction]:
    """One for each row, in their order."""
    return [_prediction(objective.targets, one) for one in outputs_of(objective, module, rows, done)]


@torch.no_grad()
def outputs_of(
    objective: Classifier, module: nn.Module, rows: Sequence[Tokens], done: Callable[[int], None] | None = None
) -> NDArray[np.float64]:
    """Probabilities (N, C) of the classes, or numbers (N, 1)."""
    device = next(module.parameters()).device
    order = sorted(range(len(rows)), key=lambda at: len(rows[at].ids), reverse=True)
    found = np.zeros((len(rows), objective.targets.outputs))
    finished = 0
    for batch in objective.batches([rows[at] for at in order], TOKENS_AT_ONCE):
        part = _probabilities(objective, module, batch.to(device))
        found[order[finished : finished + len(part)]] = part
        finished += len(part)
        if done is not None:
            done(finished)
    return found


def _probabilities(objective: Classifier, module: nn.Module, batch: Batch) -> NDArray[np.float64]:
    outputs = objective.predict(module, batch).double()
    if objective.targets.form == "several":
        return outputs.sigmoid().cpu().numpy()
    values = outputs.softmax(-1) if objective.targets.classes else outputs[:, None]
    return values.cpu().numpy()


def _prediction(targets: TargetFacts, outputs: NDArray[np.float64]) -> Prediction:
    if not targets.classes:
        return Prediction(None, float(outputs[0]), {})
    shares = dict(zip(targets.classes, outputs.tolist(), strict=True))
    if targets.form == "several":
        return Prediction(None, None, shares, [name for name, share in shares.items() if share > THRESHOLD])
    return Prediction(targets.classes[int(outputs.argmax())], None, shares)
