"""What the benchmark of train_step.py compares: rankwise and loops over peft, each over the same rows of Dolly. Those
that have trainers of their own, TRL and Unsloth, are in trainer_stacks.py.

Every stack is told its case by what `Case` holds. All begin with the same A (B is zero), see the same sequences in the
same order with the same labels, and have AdamW, clipping, and the mean over the supervised tokens of the whole step.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limits import MODEL

RATE = 1e-4
OURS, STACKS = (
    "rankwise",
    (
        "rankwise-plain", "rankwise-compiled", "rankwise-int8", "peft-fp32", "peft-bf16", "peft-best", "peft-packed",
        "trl-fp32", "trl-bf16", "trl-best", "unsloth-cpu", "unsloth-cpu-fp32",
    ),
)  # fmt: skip
REFERENCE = "reference"
"""The plain form in float32, whose losses are what the others' are compared with."""
Step = Callable[[int], float]
"""The number of a step to its loss."""


@dataclass(frozen=True)
class Case:
    """`joined`: sequences are put together until they have `longest` tokens."""

    batch: int = 8
    rank: int = 16
    longest: int = 512
    dropout: float = 0.0
    joined: bool = False
    max_batch_tokens: int = 2048
    rows: str = ""
    """A file of rows to take instead of Dolly's."""

    @property
    def alpha(self) -> int:
        return 2 * self.rank


USUAL = "usual"
CASES = {
    USUAL: Case(),
    "batch-1": Case(batch=1),
    "long": Case(batch=2, longest=2048, joined=True),
    "rank-256": Case(rank=256),
    "dropout": Case(dropout=0.05),
    "small-pieces": Case(max_batch_tokens=1024),
}


def rankwise_stack(name: str, count: int, case: Case) -> Step:
    from rankwise.kernels.regions import REGIONS

    steps = rankwise_trainer(name, count, case).run()

    def step(number: int) -> float:
        loss = next(steps).loss
        assert all(region.compiled for region in REGIONS) == (name == "rankwise-compiled")
        return loss

    return step


def rankwise_trainer(name: str, count: int, case: Case) -> Any:
    """The starter with a LoRA adapter over the benchmark's rows."""
    from rankwise.base.loading import load
    from rankwise.config.models import ModelConfig
    from rankwise.kernels.quantized.formats import use_int8_products, weights_for_int8
    from rankwise.runs.records import silent
    from rankwise.system.memory import keep_memory
    from rankwise.training.backend import OUTLIERS

    backend = {OURS: "fused", "rankwise-int8": "fused", "rankwise-compiled": "compiled"}.get(name, "eager")
    keep_memory()
    dtype = "float32" if name == REFERENCE else "bfloat16"
    model = load(ModelConfig(name=MODEL, dtype=dtype, quantize="int8" if name == "rankwise-int8" else "none"), silent)
    use_int8_products(model.module, dict.fromkeys(weights_for_int8(model.module), tuple(range(OUTLIERS))))
    return lora_trainer(model.module, case, sequences(model, count, case), backend)


def lora_trainer(module: Any, case: Case, rows: Any, backend: str = "fused", recompute: int = 0) -> Any:
    """A trainer of adapters on all linear layers. `rows` are sequences, or the batches of any step; so many blocks
    compute their activations again."""
    from rankwise.config.adapters import LoraConfig
    from rankwise.methods.inject import inject
    from rankwise.methods.lora import TrainableLoRA

    adapters = inject(module, LoraConfig(rank=case.rank, alpha=case.alpha, dropout=case.dropout))
    return trainer_of(module, TrainableLoRA(adapters), case, rows, backend, recompute=recompute)


def trainer_of(
    module: Any, trainable: Any, case: Case, rows: Any, backend: str, rate: float = RATE, steps: int = 10**6,
    recompute: int = 0,
) -> Any:  # fmt: skip
    """At a constant learning rate; nothing happens between steps."""
    from rankwise.config.training import TrainingConfig
    from rankwise.objectives.registry import objective_named
    from rankwise.rows.encoded.batches import Batches
    from rankwise.training.backend import backend_named
    from rankwise.training.trainer import Trainer
    from rankwise.training.workload import Workload

    config = TrainingConfig(
        steps=steps, learning_rate=rate, schedule="constant", warmup=0.0, batch_size=case.batch,
        max_batch_tokens=case.max_batch_tokens,
    )  # fmt: skip
    work = Workload(
        module, trainable, objective_named("causal-lm"), longest=case.longest, activation_checkpointing=recompute
    )  # pyright: ignore[reportArgumentType]
    computing: Any = backend_named(backend, work)
    batches = rows if hasattr(rows, "at") else Batches(rows, case.batch, case.max_batch_tokens, 0, computing.layout)
    return Trainer(trainable, batches, config, computing)


@dataclass(frozen=True)
class StepBatches:
    """The batches of each step, by a function of its number."""

    at: Callable[[int], Any]

    def epoch(self, step: int) -> float:
        return 0.0


def peft_stack(name: str, count: int, case: Case) -> Step:
    return peft_loop(name, count, case)[1]


def peft_loop(name: str, count: int, case: Case, rate: float = RATE, decay_over: int = 0) -> tuple[Any, Step]:
    """The model, and a step of a loop as peft's documentation has it, over padded batches with their mask and labels.
    `best`: adapters in bfloat16 too, the fused optimizer, memory kept, float32 products that may be made of bfloat16
    ones, and rows of like length together, padded on the right and so without a mask; `packed`: that, with rows packed
    and kept apart by their positions. The rate falls to zero in `decay_over` steps, or stays."""
    import torch
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    from rankwise.base.loading import load
    from rankwise.config.models import ModelConfig
    from rankwise.rows.encoded.batches import Batches, portion, real_places
    from rankwise.rows.encoded.packing import pack
    from rankwise.runs.records import silent
    from rankwise.system.memory import keep_memory

    best = name in ("peft-best", "peft-packed")
    if best:
        keep_memory()
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # pyright: ignore[reportAttributeAccessIssue]
    model = load(ModelConfig(name=MODEL, dtype="float32" if name == "peft-fp32" else "bfloat16"), silent)
    first = first_factors(model, case)
    module: Any = get_peft_model(model.module, PeftLoraConfig(**peft_settings(case)), autocast_adapter_dtype=not best)
    begin_at(module, first)
    module.train()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0, fused=best)
    arrange = pack if name == "peft-packed" else portion
    batches = Batches(sequences(model, count, case), case.batch, case.max_batch_tokens if best else 10**9, 0, arrange)

    def loss_of(batch: Any, supervised: int, mask: torch.Tensor | None) -> torch.Tensor:
        places = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
        return module(
            input_ids=batch.input_ids, labels=batch.targets, shift_labels=batch.targets, use_cache=False,
            num_items_in_batch=supervised, attention_mask=mask, **places,
        ).loss  # fmt: skip

    def step(number: int) -> float:
        total, parts = 0.0, batches.at(number)
        if decay_over:
            optimizer.param_groups[0]["lr"] = rate * (1 - number / decay_over)
        supervised = sum(int(batch.loss_mask.sum()) for batch in parts)
        for batch in parts:
            mask = (
                None
                if best
                else real_places(sorted(batches.rows_of(number), key=lambda row: len(row.ids), reverse=True)).long()
            )
            loss = loss_of(batch, supervised, mask)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return module, step


def peft_settings(case: Case) -> dict[str, Any]:
    return {
        "r": case.rank, "lora_alpha": case.alpha, "lora_dropout": case.dropout, "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    }  # fmt: skip


def first_factors(model: Any, case: Case) -> dict[str, Any]:
    """What rankwise begins with, by path."""
    from rankwise.config.adapters import LoraConfig
    from rankwise.methods.inject import inject

    ours = inject(model.module, LoraConfig(rank=case.rank, alpha=case.alpha))
    first = {path: adapter.factors()[0].detach().clone() for path, adapter in ours.adapters().items()}
    ours.remove()
    return first


def begin_at(module: Any, first: dict[str, Any]) -> None:
    import torch

    with torch.no_grad():
        for path, values in first.items():
            module.base_model.model.get_submodule(path).lora_A["default"].weight.copy_(values)


def sequences(model: Any, count: int, case: Case) -> list[Any]:
    from rankwise.config.data import DataConfig
    from rankwise.rows.sources import open_source
    from rankwise.rows.text.encode import Encoder
    from rankwise.rows.text.tokenize import Tokens

    rows = case.rows or str(Path(os.environ["RANKWISE_DATA"]) / "dolly" / "train.jsonl")
    spec = DataConfig(path=rows, max_length=512)
    reading = open_source(spec, spec.all_sources[0])
    examples = [example for chunk in reading.chunks() for row in chunk for example in row]
    outcomes = Encoder(model.template, model.tokenizer, spec, 512).encode(
        examples[: (20 if case.joined else 3) * count]
    )
    found = [sequence for outcome in outcomes for sequence in outcome.sequences]
    if not case.joined:
        return found[:count]
    ids, mask = ([one for row in found for one in getattr(row, name)] for name in ("ids", "loss_mask"))
    size = case.longest + 1
    return [Tokens(tuple(ids[at : at + size]), tuple(mask[at : at + size])) for at in range(0, count * size, size)]
