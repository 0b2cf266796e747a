"""A classifier's metrics on the validation rows while it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from torch import nn

from rankwise.config.validation import ValidationConfig
from rankwise.data.preparation import Prepared
from rankwise.errors import ConfigError, one_line
from rankwise.evaluation.class_metrics import metric_rows, score_rows
from rankwise.evaluation.label_task import score_labels
from rankwise.evaluation.metrics import METRICS
from rankwise.evaluation.span_metrics import score_tags
from rankwise.inference.classify import Done, Outputs, outputs_of
from rankwise.inference.tagging import tag_probabilities
from rankwise.models.loaded import LoadedModel
from rankwise.objectives.objective import Classifier, Objective, classifier
from rankwise.runs.records import SampleRecord, ScoreRecord, WarningMessage
from rankwise.text.tokenize import Tokens
from rankwise.training.dealt import computed_by_all
from rankwise.training.world import ALONE, World

OF_SEVERAL = ("micro_f1", "f1", "exact_match")


class Scored(Protocol):
    @property
    def rows(self) -> dict[str, list[list[float]]]:
        """Each metric with its rows of sums."""
        ...


@dataclass(frozen=True)
class ClassScorer:
    score: Callable[..., Scored]
    outputs: Outputs
    objective: Classifier
    model: LoadedModel
    rows: Sequence[Tokens]
    world: World = ALONE
    tokens_written: int = 0
    only: dict[int, str] = field(default_factory=dict)
    """The class that all rows were given, though they have several, after so many steps. Copies share it (`over`)."""

    def over(self, world: World) -> ClassScorer:
        return replace(self, world=world)

    def scores(self, step: int) -> list[ScoreRecord]:
        """All metrics of the objective, without intervals."""
        if not self.rows:
            return []
        rows = self.score(self.objective, self.model.module, self.rows, outputs=self._outputs).rows
        self._note_one_class(step, rows.get("matthews", []))
        return [
            ScoreRecord(step=step, metric=metric, value=METRICS[metric].value(stored), n=len(self.rows))
            for metric, stored in rows.items()
        ]

    def _note_one_class(self, step: int, pairs: Sequence[Sequence[float]]) -> None:
        predicted, actual = ({pair[at] for pair in pairs} for at in (0, 1))
        if len(predicted) == 1 < len(actual):
            self.only[step] = self.objective.targets.classes[int(predicted.pop())]

    def _outputs(self, objective: Classifier, module: nn.Module, rows: Sequence[Tokens], done: Done | None) -> Any:
        """Of all rows, of which each process computes its share."""
        if not self.world.is_several:
            return self.outputs(objective, module, rows, done)

        def compute(own: Sequence[Tokens]) -> list[Any]:
            return [one.tolist() for one in self.outputs(objective, module, own, done)]

        lengths, width = [len(row.ids) for row in rows], objective.targets.outputs
        every = [np.asarray(one).reshape(-1, width) for one in computed_by_all(self.world, rows, lengths, compute)]
        return every if self.outputs is tag_probabilities else np.concatenate(every)

    def samples(self, step: int) -> list[SampleRecord]:
        """A classifier writes no answers."""
        return []


def class_scorer(config: ValidationConfig, model: LoadedModel, prepared: Prepared, objective: Objective) -> ClassScorer:
    predicts_rows = classifier(objective)
    assert predicts_rows is not None, "the scorer of its name"
    targets = predicts_rows.targets
    names = ["loss", *(OF_SEVERAL if targets.form == "several" else metric_rows(targets, [0.0], [0.0]))]
    if config.by not in names:
        predicts = "several labels" if targets.form == "several" else "classes" if targets.classes else "numbers"
        raise ConfigError([
            f"validation.by is {config.by}, but the rows have {predicts}, whose metrics are {', '.join(names)}. "
            "Choose one of these."
        ])  # fmt: skip
    score = score_labels if targets.form == "several" else score_rows
    return ClassScorer(score, outputs_of, predicts_rows, model, prepared.measured_rows)


def tag_scorer(config: ValidationConfig, model: LoadedModel, prepared: Prepared, objective: Objective) -> ClassScorer:
    """Of words with tags; that `validation.by` is one of their metrics was checked with the settings."""
    predicts_words = classifier(objective)
    assert predicts_words is not None, "the scorer of its name"
    return ClassScorer(score_tags, tag_probabilities, predicts_words, model, prepared.measured_rows)


def one_class_warning(scorer: object, step: int, rate: float) -> WarningMessage | None:
    """Where a result gives every validation row the same class, and the rows have several."""
    only = scorer.only.get(step) if isinstance(scorer, ClassScorer) else None
    if only is None:
        return None
    return WarningMessage(
        f'every validation row is given the same class, "{one_line(only)}", so the result tells no classes apart. Try '
        f"a lower learning rate (--learning-rate {rate / 4:.2g}) or more steps, under another --run name."
    )
