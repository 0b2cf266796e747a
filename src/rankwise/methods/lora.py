"""LoRA and DoRA as a method: ranks that stay, a start at random or from the rows (EVA), and LoRA+'s learning rates.

EVA (adapters/eva.py) looks at the first micro-batches, in the order of training, before the first step. What it
decides, layers with their ranks and the start of A, is what `inject` takes. A run that is resumed reads the ranks that
were decided when it began, since its checkpoint holds the factors.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice
from math import ceil
from typing import Any

from rankwise.adapters.eva import Real, costs_of, eva_choices
from rankwise.adapters.lora import DoRA, LoRA
from rankwise.adapters.set import AdapterSet
from rankwise.adapters.targets import Choice, choose
from rankwise.base.loaded import LoadedModel
from rankwise.config.adapters import LoraConfig
from rankwise.config.training import TrainingConfig
from rankwise.errors import ResourceError, is_out_of_memory
from rankwise.forward.reference import SupervisedLogits
from rankwise.methods.adapter import AdapterMethod, AdapterTrainable
from rankwise.methods.inject import add_layers
from rankwise.methods.method import Setup
from rankwise.rows.encoded.batches import Batches, collate, input_length, portions_of, real_places
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.records import ProgressUpdate, RankRecord, StatusMessage


def eva_start(config: LoraConfig, model: LoadedModel, setup: Setup) -> tuple[list[Choice], RankRecord]:
    recorded = setup.resumed_ranks() if setup.resumed_ranks is not None else None
    layers = choose(model.module, config)
    if recorded is not None:
        resumed = [replace(layer, rank=recorded.ranks.get(layer.path, 0)) for layer in layers]
        return [layer for layer in resumed if layer.rank], recorded
    costs = costs_of(model.module, layers)
    began = time.perf_counter()
    batches = _first_batches(setup.rows, setup.training, config.eva_batches)
    choices = _choices(model, config, batches, setup)
    ranks = {layer.path: 0 for layer in layers} | {choice.path: choice.rank for choice in choices}
    budget = sum(layer.rank * costs[layer.path] for layer in layers)
    most = sum(round(layer.rank * config.eva_rho) * costs[layer.path] for layer in layers)
    record = RankRecord(0, budget, most, ranks, final=True, unit="parameters")
    tokens = sum(input_length(row) for batch in batches for row in batch)
    spent = sum(rank * costs[path] for path, rank in ranks.items())
    setup.callback(StatusMessage(_summary(record, spent, tokens, time.perf_counter() - began)))
    return choices, record


def _first_batches(rows: Sequence[Tokens], training: TrainingConfig, count: int) -> list[list[Tokens]]:
    """The rows of the first micro-batches, padded and not packed."""
    batches = Batches(rows, training.rows_per_step(len(rows)), training.max_batch_tokens, training.seed)
    steps = range(ceil(len(rows) / batches.batch_size))
    parts = chain.from_iterable(portions_of(batches.rows_of(step), training.max_batch_tokens) for step in steps)
    return list(islice(parts, count))


def _choices(model: LoadedModel, config: LoraConfig, batches: list[list[Tokens]], setup: Setup) -> list[Choice]:
    forward, device = SupervisedLogits(model.module), model.precision.device

    def run_batches(real: Real) -> None:
        for index, batch in enumerate(batches):
            real(real_places(batch).to(device))
            forward(collate(batch).to(device))
            setup.callback(ProgressUpdate("Reading rows for EVA", index + 1, len(batches), "micro-batches"))

    try:
        return eva_choices(model.module, config, run_batches, setup.training.seed)
    except Exception as error:
        if is_out_of_memory(error):
            raise ResourceError(
                "out of memory while reading rows for EVA. Lower training.max_batch_tokens, or --max-length."
            ) from None
        raise


def _summary(record: RankRecord, spent: int, tokens: int, seconds: float) -> str:
    given = [rank for rank in record.ranks.values() if rank]
    return (
        f"EVA read {tokens:,} tokens in {seconds:.1f} s: {len(given)} of {len(record.ranks)} layers have ranks from "
        f"{min(given)} to {max(given)}, {sum(given) / len(given):.1f} on average and {sum(given):,} in all; {spent:,} "
        f"of {record.budget:,} parameters"
    )


class TrainableLoRA(AdapterTrainable):
    """With `b_rate` it is LoRA+ (Hayou et al. 2024, arXiv 2402.12354): B learns at a multiple of A's rate. Of an
    embedding it is A that does: started at zero, A is what the correction grows by, and B the random frame that A is
    elsewhere.
    """

    def __init__(
        self, adapters: AdapterSet, config: LoraConfig | None = None, name: str = "default",
        ranks: RankRecord | None = None,
    ) -> None:  # fmt: skip
        super().__init__(adapters, name, ranks)
        self.config = config or LoraConfig()

    @property
    def scale_setting(self) -> str:
        return f"adapter.alpha ({self.config.alpha:g})"

    def parameter_groups(self) -> list[dict[str, Any]]:
        """A magnitude that decayed would take the base with it."""
        adapters, rate = self.adapters.adapters(self.name).values(), self.config.b_rate
        faster = [one.grown for one in adapters if isinstance(one, LoRA)] if rate != 1 else []
        magnitudes = [one.magnitude for one in adapters if isinstance(one, DoRA)]
        apart = {id(parameter) for parameter in faster + magnitudes}
        factors = [parameter for adapter in adapters for parameter in adapter.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": [parameter for parameter in factors if id(parameter) not in apart], "rate": 1.0},
            {"params": faster, "rate": rate},
            {"params": magnitudes, "rate": 1.0, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]] + self.head_groups()


class LoraMethod(AdapterMethod[LoraConfig]):
    def attach_to(self, adapters: AdapterSet, model: LoadedModel, setup: Setup) -> TrainableLoRA:
        choices, ranks = eva_start(self.config, model, setup) if self.config.start == "eva" else (None, None)
        add_layers(adapters, self.config, seed=setup.training.seed, choices=choices)
        return TrainableLoRA(adapters, self.config, ranks=ranks)
