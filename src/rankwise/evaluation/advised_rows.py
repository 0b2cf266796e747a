"""The held-out rows of `advise`, as both kinds of task measure them: without training, and with an adapter attached.

Answers of language models are read with and without examples in front of them, and behind other rows' questions. Labels
are predicted by their frequencies, by a linear probe of the frozen features, and by the classifier itself; what other
labels would cost follows from the same outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from rankwise.evaluation.advised_sides import (
    Side,
    by_frequency,
    by_likelihoods,
    by_outputs,
    by_probe,
    features_of_rows,
    frequencies,
    with_other_labels,
)
from rankwise.evaluation.class_metrics import one_target
from rankwise.evaluation.few_shot import with_examples
from rankwise.evaluation.likelihood import Likelihood, likelihoods
from rankwise.evaluation.swapped_pairs import with_other_questions
from rankwise.inference.classify import outputs_of
from rankwise.inference.kv_cache import LogitsAfter, can_share
from rankwise.models.loaded import LoadedModel
from rankwise.objectives.objective import Classifier
from rankwise.text.tokenize import Tokens

Read = Callable[[int], None]
"""Told how many rows were read since it was last called."""


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
        self._outputs = outputs_of(self.objective, self.model.module, self.rows)
        self.read(len(self.rows))
        return by_outputs(self._outputs, self._actual, self.objective.targets)

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
