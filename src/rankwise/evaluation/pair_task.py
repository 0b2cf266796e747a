"""Preference pairs as a task: how many a model orders right, by what margin, and how far it moved from its base.

preference_accuracy    share of pairs with a margin above 0, by the loss of the training (objectives/preference);
                       a pair that is undecided counts half, so a base compared with itself has 0.5
margin                 mean margin
likelihood_accuracy    share of pairs whose chosen answer has the higher mean log-probability of a token, which needs
                       no base
preference_loss        mean loss
kl_from_base           KL(base || tuned) in nats per token of the answers
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankwise.base.loaded import LoadedModel
from rankwise.evaluation.intervals import scores
from rankwise.evaluation.likelihood import LOGITS
from rankwise.evaluation.metrics import means
from rankwise.evaluation.subject import BaseAndTuned
from rankwise.evaluation.task import WithoutAnswers
from rankwise.kernels.loss import divergence
from rankwise.objectives.preference import PairLoss, log_probabilities
from rankwise.rows.encoded.batches import IGNORED, questions
from rankwise.rows.text.tokenize import Tokens, sides_of
from rankwise.runs.evaluations import ModelScores
from rankwise.runs.records import Callback, ProgressUpdate


@dataclass(frozen=True)
class PairNumbers:
    """What a model gave for N pairs, in the order of the rows."""

    losses: np.ndarray
    margins: np.ndarray
    sums: np.ndarray
    """(N, 2) log-probabilities of both answers."""
    tokens: np.ndarray
    """(N, 2) their numbers of tokens."""

    @property
    def metrics(self) -> dict[str, list[list[float]]]:
        """Each metric with its rows."""
        each = self.sums / self.tokens
        return {
            "preference_accuracy": _shares(self.margins),
            "margin": means(self.margins),
            "likelihood_accuracy": _shares(each[:, 0] - each[:, 1]),
            "preference_loss": means(self.losses),
        }


def _shares(margins: np.ndarray) -> list[list[float]]:
    return means((margins > 0) + 0.5 * (margins == 0))


@dataclass
class PairTask(WithoutAnswers):
    """`against` is the name of the base, where there is one to compare with; then `base` activates it."""

    name: str
    about: str
    loss: PairLoss
    rows: Sequence[Tokens]
    against: str | None = None
    base: Callable[[], AbstractContextManager[LoadedModel]] | None = None
    sides: BaseAndTuned | None = None
    left_out: int = 0
    _of_base: PairNumbers | None = field(default=None, init=False)

    @property
    def data(self) -> str:
        return Path(self.about).name

    @property
    def settings(self) -> dict[str, Any]:
        config = self.loss.config
        return {"objective": "preference", "loss": config.loss, "beta": config.beta}

    def score(self, model: LoadedModel, who: str, callback: Callback) -> ModelScores:
        began = time.perf_counter()
        base = self._base_numbers(callback)
        if base is not None and who == self.against:
            rows = base.metrics | {"kl_from_base": [[0.0, float(tokens)] for tokens in base.tokens.sum(1)]}
        else:
            numbers = self._numbers(model, self._referenced(base), who, callback)
            rows = numbers.metrics | self._divergences(who, callback)
            if base is None and self.loss.needs_reference:
                rows = {"likelihood_accuracy": rows["likelihood_accuracy"]}
        measured = {metric: scores(metric, sums) for metric, sums in rows.items()}
        return ModelScores(scores=measured, answers=None, seconds=time.perf_counter() - began)

    def facts(self) -> tuple[int, str]:
        digest = sha256()
        for row in self.rows:
            digest.update(np.asarray([len(row.ids), *row.ids, *np.asarray(row.loss_mask)], "<i8").tobytes())
        return len(self.rows), digest.hexdigest()

    def _base_numbers(self, callback: Callback) -> PairNumbers | None:
        if self._of_base is None and self.base is not None:
            with self.base() as model:
                numbers = self._numbers(model, self.rows, str(self.against), callback)
            if self.loss.needs_reference:  # compared with itself
                nothing = np.zeros(len(self.rows))
                numbers = replace(numbers, margins=nothing, losses=nothing + math.log(2))
            self._of_base = numbers
        return self._of_base

    def _referenced(self, base: PairNumbers | None) -> Sequence[Tokens]:
        if base is None:
            return self.rows
        return [replace(row, reference=own) for row, own in zip(self.rows, base.sums, strict=True)]

    @torch.inference_mode()
    def _numbers(self, model: LoadedModel, rows: Sequence[Tokens], who: str, callback: Callback) -> PairNumbers:
        n, done = len(rows), 0
        found = PairNumbers(np.zeros(n), np.zeros(n), np.zeros((n, 2)), np.zeros((n, 2)))
        device = next(model.module.parameters()).device
        for batch in self.loss.batches(rows, max(256, LOGITS // model.vocabulary)):
            there = batch.to(device)
            logs = log_probabilities(self.loss.predict(model.module, there), there)
            compared, pairs = self.loss.losses(logs, there), there.pairs
            assert pairs is not None, "the rows are pairs"
            at = list(pairs.positions)
            found.losses[at], found.margins[at] = compared.losses.cpu().numpy(), compared.margins.cpu().numpy()
            found.sums[at] = pairs.sums(logs).cpu().numpy()
            found.tokens[at] = pairs.sums(torch.ones_like(logs)).cpu().numpy()
            done += len(at)
            callback(ProgressUpdate(f"Comparing answers with {who}", done, n, "pairs"))
        return found

    def _divergences(self, who: str, callback: Callback) -> dict[str, list[list[float]]]:
        """The divergence from the base as [nats, tokens] for each pair, summed over the tokens of both answers."""
        if self.sides is None:
            return {}
        rows = []
        for number, row in enumerate(self.rows):
            parts = [self._divergence(self.sides, side) for side in sides_of(row)]
            rows.append([sum(nats for nats, _ in parts), float(sum(tokens for _, tokens in parts))])
            callback(ProgressUpdate(f"Comparing {who} with its base", number + 1, len(self.rows), "pairs"))
        return {"kl_from_base": rows}

    def _divergence(self, sides: BaseAndTuned, side: Tokens) -> tuple[float, int]:
        given, targets = questions(side)
        ids, places = torch.from_numpy(given), torch.from_numpy(np.flatnonzero(targets != IGNORED))
        with torch.no_grad():
            base, tuned = (logits(ids)[places] for logits in (sides.base, sides.tuned))
            return divergence(tuned, base).item(), len(places)
