"""The held-out rows of `advise`, as both kinds of task measure them: without training, and with an adapter attached.

Answers of language models are read with and without examples in front of them, and behind other rows' questions. Labels
are predicted by their frequencies, by a linear probe of the frozen features, and by the classifier itself; what other
labels would cost follows from the same outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rankwise.base.loaded import LoadedModel
from rankwise.evaluation.class_metrics import one_target
from rankwise.evaluation.few_shot import with_examples
from rankwise.evaluation.intervals import difference, measured
from rankwise.evaluation.likelihood import Likelihood, likelihoods
from rankwise.evaluation.linear_probe import fit_and_predict, probabilities
from rankwise.evaluation.metrics import METRICS
from rankwise.evaluation.swapped_pairs import with_other_questions
from rankwise.inference.kv_cache import LogitsAfter, can_share
from rankwise.objectives.objective import Classifier
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.measured import Difference, Measurement
from rankwise.runs.row_facts import TargetFacts

Read = Callable[[int], None]
"""Told how many rows were read since it was last called."""
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
    def loss(self) -> Measurement:
        return measured(METRICS["loss"], self.losses)

    @property
    def score(self) -> Measurement | None:
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


@dataclass(frozen=True)
class Untrained:
    """The best that is known without training: what `examples` training rows say, and what half of them say."""

    side: Side | None
    examples: int = 0
    of_half: Side | None = None


class AdvisedRows(Protocol):
    def base(self) -> Side: ...

    def untrained(self) -> Untrained: ...

    def adapter(self) -> Side:
        """The model as it is now."""
        ...

    def unrelated(self) -> Side | None:
        """The model as it was last measured, where each answer belongs to another row; None where rows have no
        questions."""
        ...


@dataclass
class AnsweredRows:
    """Rows of a language model. `examples` are training rows."""

    model: LoadedModel
    rows: Sequence[Tokens]
    examples: Sequence[Tokens]
    system: str | None
    seed: int
    read: Read

    def base(self) -> Side:
        return self.adapter()

    def untrained(self) -> Untrained:
        context = with_examples(self.model, self.rows, self.examples, self.system) if self.examples else None
        if context is None:
            return Untrained(None)
        module = self.model.module
        if can_share(module):
            answers = likelihoods(module, context.rows, forward=LogitsAfter(module, context.prefix), greedy=True)
        else:
            answers = likelihoods(module, context.whole, greedy=True)
        return Untrained(self._side(answers), context.examples)

    def adapter(self) -> Side:
        return self._side(likelihoods(self.model.module, self.rows, greedy=True))

    def unrelated(self) -> Side | None:
        longest = self.model.context_length
        swapped = with_other_questions(self.rows, self.seed, longest)
        return None if swapped is None else self._side(likelihoods(self.model.module, swapped, greedy=True))

    def _side(self, answers: Sequence[Likelihood]) -> Side:
        self.read(len(answers))
        return by_likelihoods(answers)


@dataclass
class LabelledRows:
    """Rows of a classifier. `examples` are the training rows that the probe is fitted on."""

    model: LoadedModel
    objective: Classifier
    rows: Sequence[Tokens]
    examples: Sequence[Tokens]
    trained: Sequence[float]
    """The labels of all training rows."""
    read: Read
    _outputs: np.ndarray | None = field(default=None, init=False)

    def base(self) -> Side:
        return by_frequency(self._shares, self._actual, self.objective.targets)

    def untrained(self) -> Untrained:
        module, labels = self.model.module, labels_of(self.examples)
        half = len(labels) // 2
        if len(set(labels[:half])) < 2:
            return Untrained(None)
        features = features_of_rows(self.objective, module, [*self.examples, *self.rows])
        self.read(len(features))
        fitted, others = features[: len(labels)], features[len(labels) :]
        targets, shares = self.objective.targets, self._shares
        sides = [by_probe(fitted[:size], labels[:size], others, self._actual, targets, shares)
                 for size in (len(labels), half)]  # fmt: skip
        return Untrained(sides[0], len(labels), sides[1])

    def adapter(self) -> Side:
        self._outputs = outputs = self.objective.outputs_for(self.model.module, self.rows)
        self.read(len(self.rows))
        return by_outputs(outputs, self._actual, self.objective.targets)

    def unrelated(self) -> Side | None:
        assert self._outputs is not None, "the adapter was measured"
        return with_other_labels(self._outputs, self._actual, self.objective.targets)

    @property
    def _shares(self) -> np.ndarray:
        return frequencies(self.trained, self.objective.targets)

    @property
    def _actual(self) -> list[float]:
        return labels_of(self.rows)


def labels_of(rows: Sequence[Tokens]) -> list[float]:
    return [one_target(row) for row in rows if row.target is not None]
