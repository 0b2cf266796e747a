"""One evaluation of what is being trained: the loss on held-out rows, and scores of answers to some of them.

Nothing of it may be felt in training: dropout is off meanwhile, and random numbers are as if none had been drawn. The
model that answers is the very one that trains, in its own forward pass.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from rankwise.config.generation import GenerationConfig
from rankwise.data.batches import Batch
from rankwise.evaluation.metrics import METRICS, rows_of
from rankwise.inference.generate import answers_in_turn
from rankwise.models.loaded import LoadedModel
from rankwise.runs.records import LossRecord, SampleRecord, ScoreRecord
from rankwise.training.early_stopping import Evaluated
from rankwise.training.losses import Loss, mean_loss
from rankwise.training.rng import undrawn
from rankwise.training.validation_prompts import Asking, Prompt

TOGETHER = 16
"""Answers that are made together: few, and from the weights as they lie, since a run is to need the memory that was
forecast for its training."""


class Learner(Protocol):
    """What is trained."""

    def train(self, mode: bool = True) -> None: ...


@dataclass
class Measuring:
    """`batches` are all held-out rows, `metrics` those of answers."""

    model: LoadedModel
    learner: Learner
    loss_of: Loss
    batches: Sequence[Batch]
    documents: int
    asking: Asking
    metrics: Sequence[str]
    seconds: float = field(default=0.0, init=False)
    """Spent on it so far."""

    def evaluate(self, step: int, *, learning: bool) -> list[Evaluated]:
        """Scores, and at last the loss; nothing where there are no held-out rows. Learning goes on if it did before."""
        with self._aside(learning):
            return [*self._scores(step), *self._losses(step)]

    def samples(self, step: int) -> list[SampleRecord]:
        with self._aside(learning=False):
            prompts = self.asking.samples
            given = self._answers(prompts)
        return [
            SampleRecord(step=step, prompt=one.prompt, wanted=one.wanted, answer=answer)
            for one, answer in zip(prompts, given, strict=True)
        ]

    @contextmanager
    def _aside(self, learning: bool) -> Iterator[None]:
        began = time.perf_counter()
        self.learner.train(False)
        try:
            with undrawn(self.device):
                yield
        finally:
            self.learner.train(learning)
            self.seconds += time.perf_counter() - began

    @property
    def device(self) -> torch.device:
        return self.model.precision.device

    def _losses(self, step: int) -> list[LossRecord]:
        if not self.documents:
            return []
        loss, tokens = mean_loss(self.loss_of, self.batches, self.device)
        return [LossRecord(step=step, loss=loss, loss_tokens=tokens, documents=self.documents)]

    def _scores(self, step: int) -> list[ScoreRecord]:
        prompts = self.asking.scored
        given, wanted = self._answers(prompts), [one.wanted or "" for one in prompts]
        return [
            ScoreRecord(step=step, metric=metric, value=score(metric, given, wanted), n=len(given))
            for metric in self.metrics
        ]

    def _answers(self, prompts: Sequence[Prompt]) -> list[str]:
        spec = GenerationConfig(max_new_tokens=self.asking.max_new_tokens, repetition_check=False)
        ids = [one.ids for one in prompts]
        return [one.text for one in answers_in_turn(self.model, ids, spec, TOGETHER, lay_out=False)]


def score(metric: str, given: Sequence[str], wanted: Sequence[str]) -> float:
    return float(METRICS[metric].of(np.asarray(rows_of(metric, given, [(one,) for one in wanted], None)).sum(0)))
