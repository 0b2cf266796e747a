"""Training on pairs of answers: what computes their losses, what these are compared with, and how they are validated.

The eager or the fused backend computes log-probabilities, the objective compares them. What the compared pairs came to
beside their loss, the margin and how many are right, adds up in a tally that whoever records a step or a validation
clears and reads.

The reference is the log-probabilities of all answers under the model before training, which dpo compares with. They are
computed once, before the first step, by the backend that trains: with a new adapter under the base with the adapter
off, otherwise under the model as training begins. They lie in the folder of the run until it is finished, so that a run
that is resumed goes on with the same numbers.

At a validation, the accuracy and the margin come from the losses of the validation pairs, which were computed just
before. The divergence from the base needs the base beside the model, so it is measured on a few of the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rankwise.base.loaded import LoadedModel
from rankwise.config.validation import ValidationConfig
from rankwise.errors import RunError
from rankwise.objectives.objective import Objective
from rankwise.objectives.preference import PairLoss, PairLosses, log_probabilities
from rankwise.rows.encoded.batches import Batch
from rankwise.rows.encoded.dealing import deal, share_of
from rankwise.rows.encoded.sequences import evenly
from rankwise.rows.preparation import Prepared
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.directory import REFERENCE
from rankwise.runs.lineage import Round
from rankwise.runs.manifest import BackendName
from rankwise.runs.records import Callback, ProgressUpdate, SampleRecord, ScoreRecord, silent
from rankwise.system.signals import raise_if_requested
from rankwise.training.backend import Eager, Fused
from rankwise.training.losses import Backend, PairReference, PairTally
from rankwise.training.training import Training
from rankwise.training.validation_prompts import AnswerScorer, answer_scorer
from rankwise.training.world import ONE_PROCESS, World

BATCH_SIZE = 64
"""Pairs between two reports of progress."""


def compare_with_base(training: Training, backend: PairBackend) -> None:
    """Add the reference log-probabilities to the run's pairs, where their loss compares with any."""
    if not backend.compared.needs_reference:
        return
    session, prepared = training.session, training.prepared
    if (resumable := training.resumable) is not None:
        files = session.run.reference, resumable.checkpoint.file(REFERENCE)
        reference = reference_of_run(files, len(prepared.sequences))
    else:
        most = training.config.max_batch_tokens
        reference = reference_of(backend, prepared, training.lineage, most, session.callback, session.world)
    training.prepared = prepared.with_references(reference.values)


def reference_of(
    backend: PairBackend, prepared: Prepared, lineage: Sequence[Round], max_tokens: int, callback: Callback,
    world: World = ONE_PROCESS,
) -> PairReference:  # fmt: skip
    """For the rows of a training and its validation. The model must be as training begins: `lineage` are the rounds
    behind it. Of several processes each computes its share."""
    numbers = np.unique(np.concatenate([prepared.trained, prepared.validation]))
    context = nullcontext() if lineage else backend.start()
    lengths = prepared.sequences.starts[numbers + 1] - prepared.sequences.starts[numbers]
    own = numbers[deal(lengths.tolist(), world.size)[world.rank]]
    parts = world.exchange(_computed(backend, context, prepared, own, max_tokens, callback).tolist())
    return PairReference(np.fmax.reduce([np.array(part, np.float64).reshape(-1, 2) for part in parts]))


def reference_of_run(files: Sequence[Path], rows: int) -> PairReference:
    """Read the reference of a run that is resumed, from the first of these files that is whole. RunError where none
    is."""
    known = next(filter(None, (PairReference.read(file, rows) for file in files)), None)
    if known is None:
        raise RunError(f"{files[0]} is missing or damaged, so the run cannot be resumed. Use --restart.")
    return known


def _computed(
    backend: PairBackend, context: AbstractContextManager[None], prepared: Prepared, numbers: np.ndarray,
    max_tokens: int, callback: Callback,
) -> np.ndarray:  # fmt: skip
    rows, values = prepared.sequences, np.full((len(prepared.sequences), 2), np.nan)
    lengths = rows.starts[numbers + 1] - rows.starts[numbers]
    order = numbers[np.argsort(-lengths, kind="stable")]
    reading = backend.reading()
    device = next(reading.inner.work.module.parameters()).device
    with reading.active(), torch.no_grad(), context:  # gradients are on while the compiler is tried
        for first in range(0, len(order), BATCH_SIZE):
            part = order[first : first + BATCH_SIZE]
            for batch in reading.layout([rows[int(number)] for number in part], max_tokens):
                assert batch.pairs is not None, "the rows are pairs"
                there = batch.to(device)
                assert there.pairs is not None, "they are where the batch is"
                sums = there.pairs.sums(reading.log_probabilities(there))
                values[part[list(batch.pairs.positions)]] = sums.cpu().numpy()
            raise_if_requested()
            done = min(first + BATCH_SIZE, len(order))
            callback(ProgressUpdate("Computing the reference", done, len(order), "pairs"))
    if not np.isfinite(values[numbers]).all():
        raise RunError(
            "the log-probability of an answer is not finite before training. The model's weights are damaged, or its "
            "dtype overflows; try --set model.dtype=float32."
        )
    return values


@dataclass(frozen=True)
class PairBackend:
    inner: Eager | Fused
    compared: PairLoss
    tally: PairTally = field(default_factory=PairTally)

    @property
    def name(self) -> BackendName:
        return self.inner.name

    @property
    def is_flat(self) -> bool:
        return isinstance(self.inner, Fused)

    def layout(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        return (self.compared.flat if self.is_flat else self.compared.batches)(rows, max_tokens)

    def log_probabilities(self, batch: Batch) -> Tensor:
        """(N,) of the batch's targets; inside `active`."""
        if isinstance(self.inner, Fused):
            return self.inner.log_probabilities(batch)
        return log_probabilities(self.compared.predict(self.inner.work.module, batch), batch)

    def loss(self, batch: Batch) -> Tensor:
        compared = self.compared.losses(self.log_probabilities(batch), batch)
        self._count(compared)
        return compared.losses.sum()

    def _count(self, compared: PairLosses) -> None:
        margins = compared.margins
        right = (margins > 0).float() + 0.5 * (margins == 0)
        self.tally.add(len(margins), margins.sum().item(), right.sum().item())

    def divergence(self, batch: Batch) -> tuple[float, int]:
        """KL(base || tuned) in nats, summed over the targets of the batch, and how many these are; inside `active`."""
        with torch.no_grad():
            with self.inner.work.trainable.base():
                rows = self.inner.base_rows(batch)
            return self.inner.anchored(None, batch, rows)[1].item(), int(batch.loss_mask.sum())

    def active(self) -> AbstractContextManager[None]:
        return self.inner.active()

    def start(self) -> AbstractContextManager[None]:
        """Inside, the model is the base that a new training begins with. All weights of a model that learns whole are
        still the base's."""
        trainable = self.inner.work.trainable
        return trainable.base() if trainable.extra_parameters else nullcontext()

    def reading(self) -> PairBackend:
        """A copy of this backend for rows that are only read, not learned from: without activation checkpointing, and
        without messages."""
        work = replace(self.inner.work, activation_checkpointing=0, callback=silent)
        return PairBackend(replace(self.inner, work=work), self.compared)


DIVERGENCE_PAIRS = 32
"""Pairs on which the divergence from the base is measured at each validation, at equal distances."""


@dataclass(frozen=True)
class PairScorer:
    answers: AnswerScorer
    rows: Sequence[Tokens]
    backend: PairBackend | None = None
    batches: Sequence[Batch] = ()
    """This process's share of those on which the divergence is measured."""
    pairs: int = 0
    """How many these are in all processes."""
    world: World = ONE_PROCESS

    def over(self, world: World, backend: Backend, max_tokens: int) -> PairScorer:
        """Two models are computed at once, so half as many tokens are. Where all weights learn, the base is not in
        memory, so the divergence is left to an evaluation."""
        assert isinstance(backend, PairBackend), "pairs are computed by it"
        has_base = backend.inner.work.trainable.extra_parameters > 0
        rows = list(evenly(self.rows, DIVERGENCE_PAIRS)) if has_base else []
        own = share_of(rows, world.rank, world.size)
        batches = backend.layout(own, max(1, max_tokens // 2)) if own else ()
        answers = self.answers.over(world, backend, max_tokens)
        return PairScorer(answers, self.rows, backend, batches, len(rows), world)

    @property
    def tokens_written(self) -> int:
        return self.answers.tokens_written

    def scores(self, step: int) -> list[ScoreRecord]:
        if not self.rows:
            return []
        assert self.backend is not None, "the run has begun"
        n = self.backend.tally.pairs
        means = [ScoreRecord(step, metric, value, n) for metric, value in self.backend.tally.means.items()]
        if not self.pairs:
            return means
        return [*means, ScoreRecord(step, "kl_from_base", self._divergence(self.backend), self.pairs)]

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
