"""Validation of preference pairs while a model trains: how many it orders right, by what margin, and how far it moved.

The accuracy and the margin come from the losses of the validation pairs, which were computed just before. The
divergence from the base needs the base beside the model, so it is measured on a few of the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from rankwise.config.validation import ValidationConfig
from rankwise.data.batches import Batch
from rankwise.data.dealing import share_of
from rankwise.data.preparation import Prepared
from rankwise.data.sequences import evenly
from rankwise.evaluation.intervals import measured_share
from rankwise.models.loaded import LoadedModel
from rankwise.objectives.objective import Objective
from rankwise.runs.measured import PairResults
from rankwise.runs.records import SampleRecord, ScoreRecord
from rankwise.text.tokenize import Tokens
from rankwise.training.pair_backend import PairBackend
from rankwise.training.validation_prompts import AnswerScorer, answer_scorer
from rankwise.training.world import ALONE, World

DIVERGENCE_PAIRS = 32
"""Pairs on which the divergence from the base is measured at each validation, at equal distances."""


@dataclass(frozen=True)
class PairScorer:
    answers: AnswerScorer
    rows: Sequence[Tokens]
    backend: PairBackend | None = None
    batches: Sequence[Batch] = ()
    """This process's share of those on which the divergence is measured."""
    measured: int = 0
    """How many these are in all processes."""
    world: World = ALONE

    def over(self, world: World) -> PairScorer:
        return replace(self, answers=self.answers.over(world), world=world)

    @property
    def tokens_written(self) -> int:
        return self.answers.tokens_written

    def on(self, backend: PairBackend, max_tokens: int) -> PairScorer:
        """The same once it is known what computes. Two models are computed at once, so half as many tokens are. Where
        all weights learn, the base is not in memory, so the divergence is left to an evaluation."""
        has_base = backend.inner.work.trainable.extra_parameters > 0
        rows = list(evenly(self.rows, DIVERGENCE_PAIRS)) if has_base else []
        own = share_of(rows, self.world.rank, self.world.size)
        batches = backend.layout(own, max(1, max_tokens // 2)) if own else ()
        return replace(self, backend=backend, batches=batches, measured=len(rows))

    def scores(self, step: int) -> list[ScoreRecord]:
        if not self.rows:
            return []
        assert self.backend is not None, "the run has begun"
        n = self.backend.tally.pairs
        means = [ScoreRecord(step, metric, value, n) for metric, value in self.backend.tally.means.items()]
        if not self.measured:
            return means
        return [*means, ScoreRecord(step, "kl_from_base", self._divergence(self.backend), self.measured)]

    def samples(self, step: int) -> list[SampleRecord]:
        return self.answers.samples(step)

    def _divergence(self, backend: PairBackend) -> float:
        """In nats per token of the answers."""
        device: torch.device = next(backend.inner.work.module.parameters()).device
        own = [backend.divergence(batch.to(device)) for batch in self.batches]
        nats, tokens = self.world.sums([sum(nats for nats, _ in own), float(sum(tokens for _, tokens in own))])
        return nats / tokens


def pair_scorer(config: ValidationConfig, model: LoadedModel, prepared: Prepared, objective: Objective) -> PairScorer:
    return PairScorer(answer_scorer(config, model, prepared, objective), prepared.measured_rows)


def pair_results(score_after: Callable[[int, str], ScoreRecord | None], first: int, last: int) -> PairResults | None:
    """Of the validations after these two steps; None where no pairs were validated."""
    scores = {
        (step, metric): score_after(step, metric)
        for step in (first, last)
        for metric in ("preference_accuracy", "margin")
    }
    values = {key: record.value for key, record in scores.items() if record is not None}
    if len(values) < len(scores) or (counted := scores[last, "margin"]) is None:
        return None
    moved = score_after(last, "kl_from_base")
    accuracy = measured_share(values[last, "preference_accuracy"] * counted.n, counted.n)
    assert accuracy is not None, "there are pairs"
    return PairResults(
        pairs=counted.n, accuracy_before=values[first, "preference_accuracy"], accuracy_after=accuracy,
        margin_before=values[first, "margin"], margin_after=values[last, "margin"],
        kl_from_base=None if moved is None else moved.value,
    )  # fmt: skip
