"""A classifier's metrics on the validation rows while it trains, and the temperature by which its result is calibrated,
so that it is right as often as it is sure (Guo et al. 2017):

    T = argmin  sum over rows of loss(logits / T) + (log T / WIDTH)^2 / 2

The last term keeps T near 1 where nothing else is known: a few rows that are all right are no reason to be certain. The
head's weights and bias are divided by T, so whatever reads them is calibrated, and no prediction changes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.base.loaded import LoadedModel
from rankwise.config.validation import ValidationConfig
from rankwise.errors import ConfigError, one_line, some
from rankwise.evaluation.class_metrics import FORMS, metric_rows, one_target, score_rows
from rankwise.evaluation.metrics import METRICS
from rankwise.objectives.classifier import Classifier
from rankwise.objectives.loss import target_loss
from rankwise.objectives.objective import Objective
from rankwise.objectives.predictions import Done
from rankwise.rows.encoded.sequences import evenly
from rankwise.rows.preparation import Prepared
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.records import LossRecord, SampleRecord, ScoreRecord
from rankwise.runs.row_facts import TargetFacts
from rankwise.training.losses import Backend
from rankwise.training.world import ONE_PROCESS, World, computed_by_all

OF_SEVERAL = ("micro_f1", "f1", "exact_match")
FEW, UNEVEN = 5, 10
"""Validation rows of a class below which its figures tell little, and from how many times as many rows of the largest
class as of the smallest balanced sampling is proposed."""
MOST_READ = 5000
"""Training rows of the baseline on words, and validation rows that a temperature is fitted to."""
FALLING, FEWEST, WIDTH = 0.95, 50, 0.5
"""The share of the best validation loss before it below which the last one is still falling; the rows that a
temperature is fitted to at least, and the width that its logarithm is expected to have."""


@dataclass(frozen=True)
class ClassScorer:
    classifier: Classifier
    model: LoadedModel
    rows: Sequence[Tokens]
    world: World = ONE_PROCESS
    tokens_written: int = 0
    counted: dict[int, tuple[Counter[int], Counter[int]]] = field(default_factory=dict)
    """The predicted and the actual classes of the rows, after so many steps. Copies share it (`over`)."""

    def over(self, world: World, backend: Backend, max_tokens: int) -> ClassScorer:
        return replace(self, world=world)

    def scores(self, step: int) -> list[ScoreRecord]:
        """All metrics of the objective, without intervals."""
        if not self.rows:
            return []
        rows = score_rows(self.classifier, self.model.module, self.rows, outputs=self._outputs).rows
        if pairs := rows.get("matthews"):
            predicted, actual = (Counter(int(pair[at]) for pair in pairs) for at in (0, 1))
            self.counted[step] = predicted, actual
        return [
            ScoreRecord(step=step, metric=metric, value=METRICS[metric].value(stored), n=len(self.rows))
            for metric, stored in rows.items()
        ]

    def _outputs(self, module: nn.Module, rows: Sequence[Tokens], done: Done | None) -> Any:
        """The model's outputs for all rows, of which each process computes its share."""
        classifier = self.classifier
        if not self.world.is_several:
            return classifier.outputs_for(module, rows, done)

        def compute(part: Sequence[Tokens]) -> list[Any]:
            return [one.tolist() for one in classifier.outputs_for(module, part, done)]

        lengths, width = [len(row.ids) for row in rows], classifier.targets.outputs
        every = computed_by_all(self.world, rows, lengths, compute)
        return FORMS[classifier.targets.form].joined([np.asarray(one).reshape(-1, width) for one in every])

    def samples(self, step: int) -> list[SampleRecord]:
        """A classifier writes no answers."""
        return []


def temperature_of(read: Sequence[tuple[Tensor, Tensor]], targets: TargetFacts) -> float:
    """For logits with their targets, in batches."""
    unweighted = targets.model_copy(update={"weights": ()})

    def cost(temperature: float) -> float:
        nats = sum(float(target_loss(logits / temperature, values, unweighted)) for logits, values in read)
        return nats + (math.log(temperature) / WIDTH) ** 2 / 2

    return min((math.exp(at / 50) for at in range(-100, 101)), key=cost)


@torch.no_grad()
def calibrate(scorer: object) -> tuple[float | None, str]:
    """Divide a head that was learned by a temperature. Returns it, or None where none fits, and what to say of it."""
    if not isinstance(scorer, ClassScorer) or not (targets := scorer.classifier.targets).classes:
        return None, ""
    classifier, module, rows = scorer.classifier, scorer.model.module, evenly(scorer.rows, MOST_READ)
    layers = (one for one in module.modules() if isinstance(one, nn.Linear) and one.out_features == targets.outputs)
    head = [one for layer in layers if layer.weight.requires_grad for one in layer.parameters()]
    if len(rows) < FEWEST or not head:
        return None, f"the probabilities are not calibrated, which takes {FEWEST} validation rows" * bool(head)
    read = [(logits.float().cpu(), classifier.loss.learned(batch.targets, batch.loss_mask))
            for _, batch, logits in classifier.in_batches(module, rows, None)]  # fmt: skip
    temperature = scorer.world.share(lambda: temperature_of(read, targets))
    for one in head:
        one.div_(temperature)
    _, _, again = next(classifier.in_batches(module, rows, None))
    if torch.allclose(again.float().cpu() * temperature, read[0][0], 1e-3, 1e-3):
        return temperature, f"the logits are divided by {temperature:.3g}, which fits the validation rows best"
    for one in head:
        one.mul_(temperature)
    return None, "the probabilities are not calibrated: dividing the last layer does not divide the logits"


def class_scorer(config: ValidationConfig, model: LoadedModel, prepared: Prepared, objective: Objective) -> ClassScorer:
    """Make the scorer. Of tags, it was checked with the settings that `validation.by` is one of their metrics."""
    targets = objective.predicting.targets
    names = ["loss", *(OF_SEVERAL if targets.form == "several" else metric_rows(targets, [0.0], [0.0]))]
    if config.by not in names and targets.form != "tags":
        predicts = "several labels" if targets.form == "several" else "classes" if targets.classes else "numbers"
        raise ConfigError([
            f"validation.by is {config.by}, but the rows have {predicts}, whose metrics are {', '.join(names)}. "
            "Choose one of these."
        ])  # fmt: skip
    return ClassScorer(objective.predicting, model, prepared.measured_rows)


def rare_in(scorer: object) -> list[str]:
    """A warning where the rows have few of a class or none, so that no score tells much of it."""
    if (own := _of_one_class(scorer)) is None or not own.rows:
        return []
    counts, classes = Counter(int(one_target(row)) for row in own.rows), own.classifier.targets.classes
    rare = [f'"{one_line(name)}" ({counts[at]})' for at, name in enumerate(classes) if counts[at] < FEW]
    return [
        f"fewer than {FEW} of the validation rows have these classes, so the scores say little about them, or nothing: "
        f"{some(rare, 8)}. Give more rows of them, or raise --held-out"
    ] * bool(rare)


def never_predicted(scorer: object, step: int, rate: float) -> list[str]:
    """A warning where the result predicts only one class, or some classes of the validation rows never."""
    if (own := _of_one_class(scorer)) is None or (counted := own.counted.get(step)) is None:
        return []
    (predicted, actual), targets = counted, own.classifier.targets
    names = [one_line(name) for name in targets.classes]
    if len(predicted) == 1 < len(actual):
        return [
            f'every validation row is given the same class, "{names[next(iter(predicted))]}", so the result cannot '
            f"tell classes apart. Try a lower learning rate (--learning-rate {rate / 4:.2g}) or more steps, under "
            "another --run name."
        ]
    never = [f'"{names[at]}" ({count} rows)' for at, count in sorted(actual.items()) if at not in predicted]
    return [f"these classes of the validation rows are never predicted: {some(never, 8)}. {_way(targets)}"] * bool(
        never
    )


def _of_one_class(scorer: object) -> ClassScorer | None:
    """The scorer, where each row has one class."""
    return scorer if isinstance(scorer, ClassScorer) and scorer.classifier.targets.one_class else None


def _way(targets: TargetFacts) -> str:
    counts = [count for count in targets.counts if count]
    if targets.balanced or targets.weights or max(counts) < UNEVEN * min(counts):
        return "Train for more passes (--epochs), or give more rows of them"
    return (
        f"The largest class has {max(counts):,} rows and the smallest {min(counts):,}; --set "
        "classification.sampling=balanced shows each equally often"
    )


def still_falling(losses: Sequence[LossRecord], steps: int, epochs: float) -> list[str]:
    """A warning where the last of all validations is by far the best, below FALLING times the best before, and
    nothing ended the run before."""
    if len(losses) < 3 or losses[-1].step != steps or losses[-1].loss >= FALLING * min(one.loss for one in losses[:-1]):
        return []
    return [
        f"the validation loss was still falling at the end, from {losses[-2].loss:.3g} to {losses[-1].loss:.3g}: "
        f"train longer with --epochs {2 * epochs:.3g} and another --run name"
    ]


def baselines(scorer: object, prepared: Prepared) -> dict[str, float] | None:
    """The accuracy of simpler answers to the validation rows: of the largest class of the training rows, and of
    logistic regression on their words where scikit-learn is installed."""
    if (own := _of_one_class(scorer)) is None or not own.rows:
        return None
    parts = list(evenly(prepared.trained_rows, MOST_READ)), own.rows
    labels, actual = ([int(one_target(row)) for row in part] for part in parts)
    found = {"largest_class": float(np.mean(np.equal(actual, Counter(labels).most_common(1)[0][0])))}
    if own.model.text is not None and find_spec("sklearn") is not None and len(set(labels)) > 1:
        texts, others = ([own.model.tokenizer.readable(list(map(int, row.ids))) for row in part] for part in parts)
        found["words"] = float(np.mean(np.equal(actual, words_predict(texts, labels, others))))
    return found


def word_features() -> list[Any]:
    """TF-IDF of words and pairs of words, and of 2 to 4 letters inside words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return [TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)]  # fmt: skip


def words_predict(texts: Sequence[str], labels: Sequence[int], other_texts: Sequence[str]) -> list[int]:
    """The class of each of the other texts, by logistic regression on the features of words."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    model: Any = make_pipeline(make_union(*word_features()), LogisticRegression(C=10.0, max_iter=1000))
    return model.fit(texts, labels).predict(other_texts).tolist()
