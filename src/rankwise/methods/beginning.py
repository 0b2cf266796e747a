"""How what learns begins: an adapter at random, or where the training rows are (EVA, adapters/eva.py); or the model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice
from math import ceil

from rankwise.adapters.eva import Real, costs_of, eva_choices
from rankwise.adapters.set import inject
from rankwise.adapters.targets import Choice, choose
from rankwise.adapters.tuned import Tuned
from rankwise.config.adapters import FullConfig, LoraConfig
from rankwise.config.experiment import Experiment
from rankwise.config.training import TrainingConfig
from rankwise.data.batches import Batches, asked, collate, portions_of, real_places
from rankwise.errors import ResourceError, is_out_of_memory
from rankwise.forward.reference import SupervisedLogits
from rankwise.methods.methods import whole
from rankwise.models.loaded import LoadedModel
from rankwise.runs.records import Callback, ProgressUpdate, RankRecord, StatusMessage
from rankwise.text.tokenize import Tokens


def begin(
    experiment: Experiment, model: LoadedModel, rows: Sequence[Tokens], callback: Callback, given: RankRecord | None
) -> tuple[Tuned, RankRecord | None]:
    """The adapter laid over the model, and the ranks where they were given out by what the rows are. `given` are those
    of a run that goes on, whose checkpoint holds the factors."""
    spec, seed = experiment.adapter, experiment.training.seed
    if isinstance(spec, FullConfig):
        return whole(model, experiment.run, callback), None
    if not isinstance(spec, LoraConfig) or spec.start != "eva":
        return inject(model.module, spec, seed=seed), None
    if given is not None:
        left = [replace(one, rank=given.ranks.get(one.path, 0)) for one in choose(model.module, spec)]
        return inject(model.module, spec, seed=seed, choices=[one for one in left if one.rank]), given
    asked_for = choose(model.module, spec)
    costs = costs_of(model.module, asked_for)
    began = time.perf_counter()
    looked_at = _looked_at(rows, experiment.training, spec.eva_batches)
    choices = _choices(model, spec, looked_at, seed, callback)
    ranks = {choice.path: 0 for choice in asked_for} | {choice.path: choice.rank for choice in choices}
    budget = sum(choice.rank * costs[choice.path] for choice in asked_for)
    most = sum(round(choice.rank * spec.eva_rho) * costs[choice.path] for choice in asked_for)
    record = RankRecord(0, budget, most, ranks, final=True, unit="parameters")
    tokens = sum(asked(row) for part in looked_at for row in part)
    spent = sum(rank * costs[path] for path, rank in ranks.items())
    callback(StatusMessage(_told(record, spent, tokens, time.perf_counter() - began)))
    return inject(model.module, spec, seed=seed, choices=choices), record


def _looked_at(rows: Sequence[Tokens], spec: TrainingConfig, count: int) -> list[list[Tokens]]:
    """The rows of the first micro-batches, in the order of training, padded and not packed."""
    batches = Batches(rows, spec.rows_per_step(len(rows)), spec.max_batch_tokens, spec.seed)
    steps = range(ceil(len(rows) / batches.batch_size))
    parts = chain.from_iterable(portions_of(batches.rows_of(step), spec.max_batch_tokens) for step in steps)
    return list(islice(parts, count))


def _choices(
    model: LoadedModel, spec: LoraConfig, looked_at: list[list[Tokens]], seed: int, callback: Callback
) -> list[Choice]:
    forward, device = SupervisedLogits(model.module), model.precision.device

    def run_batches(real: Real) -> None:
        for index, part in enumerate(looked_at):
            real(real_places(part).to(device))
            forward(collate(part).to(device))
            callback(ProgressUpdate("Looking at rows", index + 1, len(looked_at), "micro-batches"))

    try:
        return eva_choices(model.module, spec, run_batches, seed)
    except Exception as error:
        if is_out_of_memory(error):
            raise ResourceError(
                "out of memory while looking at rows for EVA. Lower training.max_batch_tokens, or --max-length."
            ) from None
        raise


def _told(record: RankRecord, spent: int, tokens: int, seconds: float) -> str:
    given = [rank for rank in record.ranks.values() if rank]
    return (
        f"EVA looked at {tokens:,} tokens for {seconds:.1f} s: {sum(given):,} ranks on {len(given)} of "
        f"{len(record.ranks)} layers, {min(given)} to {max(given)} each, {sum(given) / len(given):.1f} on average; "
        f"{spent:,} parameters of {record.budget:,}"
    )
