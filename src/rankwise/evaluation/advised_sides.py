"""What `advise` compares on held-out rows: one side for each way to answer them, with sums for each row.

language models   nats and tokens of a row's answers; a hit where greedy decoding would write exactly them
classes           nats of a row's class; a hit where it is the likeliest
numbers           the squared error of a row; no hits

A side without training knows a classifier's labels only from the training rows: how often each occurs (`by_frequency`),
or a linear probe of the frozen model's features (`by_probe`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rankwise.evaluation.intervals import difference, measured
from rankwise.evaluation.likelihood import Likelihood
from rankwise.evaluation.linear_probe import fit_and_predict, probabilities
from rankwise.evaluation.metrics import METRICS
from rankwise.objectives.objective import Classifier
from rankwise.runs.measured import Difference, Measured
from rankwise.runs.row_facts import TargetFacts
from rankwise.text.tokenize import Tokens

Numbers = NDArray[np.float64]
LEAST_PROBABILITY = 1e-6
TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Side:
    losses: list[list[float]]
    """[loss, count] of each row."""
    hits: list[list[float]] | None = None
    """[hit, 1] of each row."""

    @property
    def loss(self) -> Measured:
        return measured(METRICS["loss"], self.losses)

    @property
    def score(self) -> Measured | None:
        return None if self.hits is None else measured(METRICS["accuracy"], self.hits)

    def against(self, other: Side) -> Difference:
        """The loss of this side minus that of another, row by row."""
        return difference(METRICS["loss"], other.losses, self.losses)


def by_likelihoods(answers: Sequence[Likelihood]) -> Side:
    return Side([one.sums for one in answers], [[float(bool(one.greedy)), 1.0] for one in answers])


def by_outputs(outputs: Numbers, actual: Sequence[float], targets: TargetFacts) -> Side:
    """A classifier's probabilities (N, C), or its numbers (N, 1)."""
    if not targets.classes:
        return Side([[float((value - one) ** 2), 1.0] for value, one in zip(outputs[:, 0], actual, strict=True)])
    labels = np.asarray(actual, np.int64)
    nats = -np.log(np.maximum(outputs[np.arange(len(labels)), labels], LEAST_PROBABILITY))
    hits = outputs.argmax(1) == labels
    return Side([[float(one), 1.0] for one in nats], [[float(one), 1.0] for one in hits])


def with_other_labels(outputs: Numbers, actual: Sequence[float], targets: TargetFacts) -> Side:
    """The mean loss of each row's outputs under the labels of all other rows."""
    rows, size = [], len(actual)
    for at in range(size):
        others = [label for number, label in enumerate(actual) if number != at]
        same = np.repeat(outputs[at : at + 1], size - 1, 0)
        rows.append([float(np.mean([loss for loss, _ in by_outputs(same, others, targets).losses])), 1.0])
    return Side(rows)


def frequencies(labels: Sequence[float], targets: TargetFacts) -> Numbers:
    """The share (C,) of each class, where none is 0; of numbers their mean."""
    if not targets.classes:
        return np.array([float(np.mean(labels))])
    counts = np.bincount(np.asarray(labels, np.int64), minlength=targets.outputs) + 1.0
    return np.asarray(counts / counts.sum(), np.float64)


def by_frequency(shares: Numbers, actual: Sequence[float], targets: TargetFacts) -> Side:
    """Every row is answered with the frequencies of the classes, or with their mean number."""
    return by_outputs(np.tile(shares, (len(actual), 1)), actual, targets)


def by_probe(
    features: Numbers, labels: Sequence[float], others: Numbers, actual: Sequence[float], targets: TargetFacts,
    shares: Numbers,
) -> Side:  # fmt: skip
    """A linear probe fitted on the features of labelled rows predicts `others`."""
    numbers = np.asarray(labels, np.int64)
    goals = np.eye(targets.outputs)[numbers] if targets.classes else np.asarray(labels, np.float64)[:, None]
    values, without = fit_and_predict(features @ features.T, others @ features.T, goals)
    outputs = probabilities(values, without, numbers, shares) if targets.classes else values
    return by_outputs(outputs, actual, targets)


@torch.no_grad()
def features_of_rows(objective: Classifier, module: nn.Module, rows: Sequence[Tokens]) -> Numbers:
    """The features (N, D) of the frozen body: the mean over the tokens of a text."""
    body: Any = getattr(module, str(module.base_model_prefix))
    device, states = next(module.parameters()).device, list[Tensor]()
    hook = body.register_forward_hook(lambda _, __, outputs: states.append(outputs[0]))
    order = sorted(range(len(rows)), key=lambda at: len(rows[at].ids), reverse=True)
    parts: list[Numbers] = []
    try:
        for batch in objective.batches([rows[at] for at in order], TOKENS_AT_ONCE):
            there = batch.to(device)
            objective.predict(module, there)
            real = there.inputs["attention_mask"][..., None].double()
            parts.append(((states.pop().double() * real).sum(1) / real.sum(1)).cpu().numpy())
    finally:
        hook.remove()
    return np.concatenate(parts)[np.argsort(order)]
