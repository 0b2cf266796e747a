"""A step of LoRA on images, beside transformers' Trainer with peft on the same images, in turns.

    python bench/image_step.py [--json] [--steps 8] [--size 112] [--batch 16] [--stacks rankwise,...] [--out TITLE]

DINOv2-small in bfloat16, LoRA of rank 16 on all linear layers in float32, and a new head of ten classes:

    rankwise          the fused backend, as `rankwise train` chooses it
    rankwise-eager    the model's own code
    trainer           transformers' Trainer with peft, adapters in float32 as peft makes them, fused AdamW
    trainer-bf16      the same with adapters in bfloat16, which is another number format: faster, and coarser

Each is a process of its own, and all make their steps in turns, forth and back (ABBA); the first step is not counted.
Images are resized before the first step for all. Memory is the most that was held from the first step on, over what was
held when the model was loaded.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from memory import forget_peak, resident
from telling import parser_of, tell
from train_step import Served, Stack

from rankwise.base.loading import load

NAMES = ("rankwise", "rankwise-eager", "trainer", "trainer-bf16")
RATE, CLASSES = 1e-3, 10


def prepared(size: int, count: int) -> tuple[Any, Any]:
    """The objective, and so many encoded rows of CIFAR-10."""
    from rankwise.config.data import DataConfig
    from rankwise.config.experiment import Experiment
    from rankwise.objectives.registry import decided, objective_of
    from rankwise.rows.preparing import prepare
    from rankwise.runs.records import silent

    data = {"path": str(Path(os.environ["RANKWISE_DATA"]) / "cifar10" / "train.parquet"), "rows": count}
    experiment = decided(
        Experiment(model="dinov2-small", data=DataConfig(**data), run="bench", images={"size": size}), silent
    )
    objective = objective_of(experiment.objective, experiment.rows, silent)
    model = load(experiment.base.model_copy(update={"dtype": "bfloat16"}), silent, objective.kind)
    return (objective, model), prepare(experiment.data, objective.rows.encoding(model), silent).trained_rows


def ours(name: str, size: int, batch: int, steps: int, turns: Served) -> None:
    from rankwise.adapters.set import AdapterSet
    from rankwise.adapters.targets import choose
    from rankwise.config.adapters import LoraConfig
    from rankwise.config.training import TrainingConfig
    from rankwise.methods.lora import TrainableLoRA
    from rankwise.rows.encoded.batches import Batches
    from rankwise.system.memory import keep_memory
    from rankwise.training.backend import choose_backend
    from rankwise.training.trainer import Trainer
    from rankwise.training.workload import Workload

    keep_memory()
    (objective, model), rows = prepared(size, steps * batch)
    adapters = AdapterSet(model.module)
    adapters.add_heads(objective.heads(model))
    adapters.attach(choose(model.module, LoraConfig()), "default")
    trainable = TrainableLoRA(adapters)
    config = TrainingConfig(steps=steps, batch_size=batch, learning_rate=RATE, schedule="constant", warmup=0.0)
    largest = min(config.max_batch_tokens, batch * objective.row_length)
    work = Workload(model.module, trainable, objective, longest=objective.row_length, largest=largest)
    backend = choose_backend(work, "eager" if name.endswith("eager") else "auto", 0)
    loaded = resident()
    forget_peak()
    records = Trainer(trainable, Batches.of(rows, config, backend.layout), config, backend).run()
    for _ in range(steps):
        turns.begin()
        turns.end(next(records).loss, loaded=loaded)


def theirs(name: str, size: int, batch: int, steps: int, turns: Served) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils.data import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments

    (objective, model), rows = prepared(size, steps * batch)
    (pixels,) = (part.inputs["pixel_values"] for part in objective.loss.batches(list(rows), 10**12))
    targets = torch.tensor([int(row.target) for row in rows])
    processing = objective.processing
    mean, std = (torch.tensor(values)[:, None, None] for values in (processing.mean, processing.std))

    class Images(Dataset[dict[str, Any]]):
        def __len__(self) -> int:
            return len(targets)

        def __getitem__(self, at: int) -> dict[str, Any]:
            image = (pixels[at].permute(2, 0, 1).float() * processing.scale - mean) / std
            return {"pixel_values": image.to(torch.bfloat16), "labels": targets[at]}

    adapter = LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", exclude_modules=["classifier"], modules_to_save=["classifier"]
    )
    module = get_peft_model(model.module, adapter, autocast_adapter_dtype=name == "trainer")
    loaded = resident()

    class Waiting(TrainerCallback):
        def on_step_begin(self, *given: Any, **named: Any) -> None:
            turns.begin()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **named: Any) -> None:
            if logs and "loss" in logs:
                turns.end(float(logs["loss"]), loaded=loaded)

    settings = TrainingArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=batch, max_steps=steps, learning_rate=RATE,
        lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, logging_steps=1, report_to="none",
        save_strategy="no", use_cpu=True, disable_tqdm=True, optim="adamw_torch_fused", remove_unused_columns=False,
    )  # fmt: skip
    forget_peak()
    Trainer(module, settings, train_dataset=Images(), callbacks=[Waiting()]).train()


def measured(names: list[str], size: int, batch: int, steps: int) -> list[dict[str, Any]]:
    stacks = [Stack(name, batch, steps, __file__, str(size)) for name in names]
    try:
        for number in range(steps):
            for stack in stacks if number % 2 == 0 else reversed(stacks):
                stack.step()
    finally:
        for stack in stacks:
            stack.end()
    return [row_of(stack.name, stack.rows, batch) for stack in stacks]


def row_of(name: str, rows: list[dict[str, Any]], batch: int) -> dict[str, Any]:
    seconds = statistics.median(row["seconds"] for row in rows[1:])
    above = max(row["rss"] for row in rows) - rows[0]["loaded"]
    return {"stack": name, "seconds": seconds, "images_per_second": batch / seconds, "bytes_above_model": above}


def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        print(
            f"{row['stack']:<16} {row['seconds']:.3f} s a step, {row['images_per_second']:.1f} images/s, "
            f"{row['bytes_above_model'] / 1e6:,.0f} MB above the model; "
            f"{row['seconds'] / rows[0]['seconds']:.2f} times the time and "
            f"{row['bytes_above_model'] / rows[0]['bytes_above_model']:.2f} times the memory of {rows[0]['stack']}"
        )


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--stacks", default=",".join(NAMES))
    for name in ("--serve", "--rows", "--case"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        run = theirs if given.serve.startswith("trainer") else ours
        run(given.serve, int(given.case), int(given.rows), given.steps, Served())
        return
    rows = measured(given.stacks.split(","), given.size, given.batch, given.steps)
    tell(given, rows, show, {"size": given.size, "batch": given.batch, "steps": given.steps, "rows": rows})


if __name__ == "__main__":
    main()
