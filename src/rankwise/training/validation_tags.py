"""A token classifier's metrics on the validation rows while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rankwise.config.validation import ValidationConfig
from rankwise.data.preparation import Prepared
from rankwise.evaluation.metrics import METRICS
from rankwise.evaluation.span_metrics import score_tags
from rankwise.models.loaded import LoadedModel
from rankwise.objectives.objective import Classifier, Objective, classifier
from rankwise.runs.records import SampleRecord, ScoreRecord
from rankwise.text.tokenize import Tokens


@dataclass(frozen=True)
class TagScorer:
    objective: Classifier
    model: LoadedModel
    rows: Sequence[Tokens]
    tokens_written: int = 0

    def scores(self, step: int) -> list[ScoreRecord]:
        """All metrics of spans and tags, without intervals."""
        if not self.rows:
            return []
        rows = score_tags(self.objective, self.model.module, self.rows).rows
        return [
            ScoreRecord(step=step, metric=metric, value=METRICS[metric].value(stored), n=len(self.rows))
            for metric, stored in rows.items()
        ]

    def samples(self, step: int) -> list[SampleRecord]:
        """A classifier writes no answers."""
        return []


def tag_scorer(config: ValidationConfig, model: LoadedModel, prepared: Prepared, objective: Objective) -> TagScorer:
    predicts_words = classifier(objective)
    assert predicts_words is not None, "the scorer of its name"
    return TagScorer(predicts_words, model, prepared.measured_rows)
