"""A damaged file in the newest checkpoint, with transformers' Trainer and PEFT: what resuming makes of it.

    python bench/torn_trainer.py FOLDER [--json] [--out TITLE]

The counterpart of R06 in reliability.py: a tiny Llama, LoRA with dropout, 11 steps, a checkpoint every 3 of which the
last two are there (save_total_limit=2), and six files of the newest one damaged in six ways. The training is then
resumed by `trainer.train(resume_from_checkpoint=True)` in fresh objects, and the adapter compared with that of an
undisturbed run.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from telling import parser_of, tell

STEPS, EVERY, RUNS_UNTIL = 11, 3, 10
PARTS = ("adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth",
         "trainer_state.json")  # fmt: skip


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path)
    chosen = parser.parse_args()
    tell(chosen, results(chosen.folder), show)


def trainer_in(folder: Path, *, until: int | None = None) -> Any:
    """Fresh objects for the training in a folder, which stops after step `until`."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from conftest import tiny_model

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step == until

    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_dropout=0.2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model("llama"), config).train()
    rows = [[(7 * n + at) % 90 + 3 for at in range(12)] for n in range(9)]
    data = Dataset.from_dict({"input_ids": rows, "labels": rows})
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, save_steps=EVERY, save_total_limit=2, per_device_train_batch_size=2,
        learning_rate=0.01, report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    return Trainer(model=model, args=arguments, train_dataset=data, callbacks=[Stop()])


def weights(trainer: Any) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters() if value.requires_grad}


def results(folder: Path) -> dict[str, Any]:
    import torch

    from kit.small_runs import DAMAGES

    warnings.simplefilter("ignore")
    shutil.rmtree(folder, ignore_errors=True)
    straight = trainer_in(folder / "whole")
    straight.train()
    whole = weights(straight)
    trainer_in(folder / "begun", until=RUNS_UNTIL).train()
    steps = sorted((folder / "begun").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for extra in [path for path in steps if int(path.name.rpartition("-")[2]) > STEPS // EVERY * EVERY]:
        shutil.rmtree(extra)  # what stopping saved
    names = [path.name for path in steps if path.exists()][-2:]
    cells = []
    for part in (None, *PARTS):
        for damage in (*DAMAGES, "swapped") if part else ("none",):
            torn = folder / "torn"
            shutil.rmtree(torn, ignore_errors=True)
            shutil.copytree(folder / "begun", torn)
            if part is not None:
                older, file = torn / names[-2] / part, torn / names[-1] / part
                shutil.copy(older, file) if damage == "swapped" else DAMAGES[damage](file)
            cells.append({"file": part, "damage": damage, "outcome": outcome(torn, whole, torch)})
    return {"checkpoints": names, "cells": cells, "counts": Counter(one["outcome"].partition(":")[0] for one in cells)}


def outcome(folder: Path, whole: dict[str, Any], torch: Any) -> str:
    trainer = trainer_in(folder)
    try:
        trainer.train(resume_from_checkpoint=True)
    except Exception as error:
        return f"exception: {type(error).__name__}"
    apart = max(float((value - whole[name]).abs().max()) for name, value in weights(trainer).items())
    same = all(torch.equal(value, whole[name]) for name, value in weights(trainer).items())
    return "equal" if same else f"other weights, no word: {apart:.2g}"


def show(found: dict[str, Any]) -> None:
    for cell in found["cells"]:
        print(f"{cell['file']!s:<28}{cell['damage']:<10}{cell['outcome']}")
    print(dict(found["counts"]))


if __name__ == "__main__":
    main()
