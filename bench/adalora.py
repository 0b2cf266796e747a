"""What a step of AdaLoRA costs against a step of LoRA, before and after the shrink, and the same for peft.

    python bench/adalora.py [--json] [--gate] [--pairs 8] [--rows 8] [--rank 16] [--out bench/results/TITLE]

One process, one model (SmolLM2-135M in the number format that the machine is best at), the same rows of Dolly
($RANKWISE_DATA/dolly) for all, all linear layers; ours in the fast form. Before the shrink AdaLoRA has 1.5 times the
ranks it keeps, and stands beside LoRA of as many; it decides at every step, which is the most it can cost. After the
shrink it stands beside LoRA of the very ranks it kept. Steps are whole (forward, backward, penalty, clipping, update,
importance, decision), in the order ABBA, after one of each that is not counted. A ratio is the median over ABBA,
since the machine's speed drifts and who comes first is slower; `quarters` are where the middle half of them lies. With
--gate it fails where a ratio is above its limit.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from stacks import CASES, USUAL, StepBatches, trainer_of

from rankwise.adapters.set import AdapterSet
from rankwise.adapters.targets import Choice
from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.methods.adalora import TrainableAdaLora
from rankwise.methods.inject import add_adapter
from rankwise.methods.lora import TrainableLoRA
from rankwise.methods.trainable import Trainable
from rankwise.objectives.causal_lm import token_loss
from rankwise.rows.encoded.batches import Arrange, Batch, Batches, portion
from rankwise.rows.encoded.packing import flat
from rankwise.rows.sources import open_source
from rankwise.rows.text.encode import Encoder
from rankwise.runs.manifest import machine, versions
from rankwise.runs.records import silent
from rankwise.system.memory import keep_memory

STEPS = 1000
BEFORE, AFTER = 1.05, 1.02
"""The most that a step may cost, of LoRA's."""
Step = Callable[[], None]


def rows_of(model: LoadedModel, count: int, batch: int, arrange: Arrange) -> Batches:
    spec = DataConfig(path=str(Path(os.environ["RANKWISE_DATA"]) / "dolly" / "train.jsonl"), max_length=512)
    reading = open_source(spec, spec.all_sources[0])
    examples = [example for chunk in reading.chunks() for row in chunk for example in row][: 3 * count]
    outcomes = Encoder(model.template, model.tokenizer, spec, 512).encode(examples)
    sequences = [sequence for outcome in outcomes for sequence in outcome.sequences][:count]
    return Batches(sequences, batch, 2048, 0, arrange)


def ours(
    model: LoadedModel, adapters: AdapterSet, name: str, trainable: Trainable, batches: Batches, first: int
) -> Step:
    """Counts its own steps from `first`; the rows are the same for whoever is at the same number of calls."""
    rows = StepBatches(lambda step: batches.at(step - first))
    adapters.activate(name)
    trainer = trainer_of(model.module, trainable, CASES[USUAL], rows, "fused", steps=STEPS)
    trainer.state.step, records = first, trainer.run()

    def step() -> None:
        adapters.activate(name)
        next(records)

    return step


def abba_ratios(first: list[float], second: list[float]) -> list[float]:
    """Of each two pairs, in which one and then the other came first, the geometric mean; sorted. Who comes first meets
    shapes that no product was prepared for yet, and is slower by a sixth where many layers have ranks of their own."""
    pairs = [one / other for one, other in zip(first, second, strict=True)]
    return sorted(math.sqrt(one * other) for one, other in zip(pairs[::2], pairs[1::2], strict=False))


def abba(one: Step, other: Step, pairs: int) -> dict[str, Any]:
    seconds: tuple[list[float], list[float]] = ([], [])
    one(), other()
    for number in range(pairs):
        for index in (0, 1) if number % 2 == 0 else (1, 0):
            began = time.perf_counter()
            (one, other)[index]()
            seconds[index].append(time.perf_counter() - began)
    ratios = abba_ratios(*seconds)
    quarters = [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]]
    medians = [statistics.median(side) for side in seconds]
    return {"ratio": statistics.median(ratios), "quarters": quarters, "seconds": medians, "all": seconds}


def rankwise_pair(model: LoadedModel, batches: Batches, rank: int, pairs: int) -> tuple[dict[str, Any], dict[str, Any]]:
    adapters = AdapterSet(model.module)
    spec = AdaLoraConfig(budget=f"{rank}", interval=1)
    add_adapter(adapters, LoraConfig(rank=round(rank * spec.initial)), "lora")
    add_adapter(adapters, spec, "adalora")
    trainable = TrainableAdaLora(adapters, spec, STEPS, "adalora")
    inside = trainable.schedule.warmup + 100
    ada = ours(model, adapters, "adalora", trainable, batches, inside)
    lora = ours(model, adapters, "lora", TrainableLoRA(adapters, name="lora"), batches, inside)
    before = abba(ada, lora, pairs)
    ours(model, adapters, "adalora", trainable, batches, trainable.schedule.decided)()
    assert trainable.final
    kept = [Choice(path, part.rank, 2.0) for path, part in adapters.adapters("adalora").items()]
    adapters.attach(kept, "same")
    after = abba(
        ours(model, adapters, "adalora", trainable, batches, trainable.schedule.decided + 1),
        ours(model, adapters, "same", TrainableLoRA(adapters, name="same"), batches, 0),
        pairs,
    )
    after["mean_rank"] = sum(choice.rank for choice in kept) / len(kept)
    adapters.remove()
    return before, after


def peft_step(module: Any, batches: Batches, after: Callable[[int], None]) -> Step:
    """A loop over peft as its documentation has it, on the same rows."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True)
    calls = [0]

    def loss_of(batch: Batch) -> torch.Tensor:
        logits = module(input_ids=batch.input_ids, use_cache=False).logits[batch.loss_mask]
        return token_loss(logits, batch)

    def step() -> None:
        parts = batches.at(calls[0])
        supervised = sum(int(part.loss_mask.sum()) for part in parts)
        for part in parts:
            (loss_of(part) / supervised).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        after(STEPS // 10 + 100 + calls[0])
        optimizer.zero_grad()
        calls[0] += 1

    return step


def peft_pair(batches: Batches, rank: int, pairs: int) -> dict[str, Any]:
    """Two copies of the model, since peft's methods do not share one."""
    from peft import AdaLoraConfig as PeftAdaLoraConfig
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    first = round(rank * 1.5)
    adalora = PeftAdaLoraConfig(
        target_r=rank, init_r=first, tinit=STEPS // 10, tfinal=STEPS * 4 // 10, deltaT=1, total_step=STEPS,
        lora_alpha=2 * first, target_modules="all-linear", task_type="CAUSAL_LM",
    )  # fmt: skip
    lora = PeftLoraConfig(r=first, lora_alpha=2 * first, target_modules="all-linear", task_type="CAUSAL_LM")
    modules = [
        get_peft_model(load(ModelConfig(name="smollm2-135m"), silent).module, config) for config in (adalora, lora)
    ]
    for module in modules:
        module.train()
    return abba(
        peft_step(modules[0], batches, modules[0].base_model.update_and_allocate),
        peft_step(modules[1], batches, lambda step: None),
        pairs,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--gate", action="store_true")
    asked = parser.parse_args()
    model = load(ModelConfig(name="smollm2-135m"), silent)
    keep_memory()
    count = asked.rows * (asked.pairs + 1)
    batches = rows_of(model, count, asked.rows, flat)
    before, after = rankwise_pair(model, batches, asked.rank, asked.pairs)
    peft = peft_pair(rows_of(model, count, asked.rows, portion), asked.rank, asked.pairs)
    result = {
        "before_shrink_ratio": before["ratio"],
        "after_shrink_ratio": after["ratio"],
        "peft_ratio": peft["ratio"],
        "mean_rank": asked.rank,
        "tokens_per_step": statistics.mean(
            sum(part.tokens for part in batches.at(step)) for step in range(asked.pairs)
        ),
        "before": before,
        "after": after,
        "peft": peft,
        "dtype": model.facts.dtype,
        "versions": versions(),
        "machine": {key: value for key, value in machine().items() if key != "system"},
    }
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    if asked.json:
        print(json.dumps(result))
    else:
        for title, pair in (("before the shrink", before), ("after the shrink", after), ("peft", peft)):
            low, high = pair["quarters"]
            print(
                f"{title:<20} {pair['ratio']:.3f}, half of them {low:.3f} to {high:.3f}  "
                f"({pair['seconds'][0]:.2f} s against {pair['seconds'][1]:.2f} s)"
            )
    if asked.gate and (before["ratio"] > BEFORE or after["ratio"] > AFTER):
        raise SystemExit(f"above {BEFORE} before the shrink or {AFTER} after it")


if __name__ == "__main__":
    main()
