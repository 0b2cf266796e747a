"""Trainers that benchmarks of train_step.py wait for: TRL's SFTTrainer, and Unsloth's over it. Both see the rows, the
labels, the first factors and the optimizer of stacks.py. What a trainer does before its callbacks hear of a step
(taking rows, padding them) is not in its time.
"""

from __future__ import annotations

import tempfile
from typing import Any, Protocol

from limits import MODEL
from stacks import RATE, Case, begin_at, first_factors, peft_settings, sequences


class Turns(Protocol):
    """What a trainer that has a loop of its own is told to wait by."""

    def begin(self) -> None: ...

    def end(self, loss: float) -> None: ...


def trl_train(name: str, count: int, steps: int, turns: Turns, case: Case) -> None:
    """As documented: TRL's defaults, in float32 or under bfloat16 autocast. `best`: weights in bfloat16 and adapters
    too, no checkpointing, the fused optimizer, memory kept, and no padding."""
    import torch
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    from rankwise.system.memory import keep_memory

    best = name == "trl-best"
    if best:
        keep_memory()
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # pyright: ignore[reportAttributeAccessIssue]
    model = _starter("bfloat16" if best else "float32")
    own: dict[str, Any] = {"max_length": case.longest + 1}
    if best:
        own = {"gradient_checkpointing": False, "optim": "adamw_torch_fused", "padding_free": True, "max_length": None}
    first, adapter = first_factors(model, case), PeftLoraConfig(**peft_settings(case))
    given: dict[str, Any] = {"model": model.module, "peft_config": adapter}
    if best:
        given = {"model": get_peft_model(model.module, adapter, autocast_adapter_dtype=False)}
    _train(given, model, first, count, steps, turns, case, bf16=name == "trl-bf16", **own)


def unsloth_train(name: str, count: int, steps: int, turns: Turns, case: Case) -> None:
    """Unsloth on a CPU at its best: both of its flags on (unsloth_settings), no checkpointing, memory kept. Its own
    choices stay: float32 or bfloat16 by what the processor has (`-fp32`: float32, which alone makes it keep frozen
    weights in bfloat16), the fused optimizer, padded batches. 4-bit weights are off, as for all others."""
    import torch
    from unsloth import FastLanguageModel  # pyright: ignore[reportMissingImports]  # before transformers, as it demands

    from rankwise.system.memory import keep_memory

    keep_memory()
    whole = name == "unsloth-cpu-fp32"
    model = _starter("bfloat16")
    first = first_factors(model, case)
    module, _ = FastLanguageModel.from_pretrained(
        str(model.source.folder), max_seq_length=case.longest + 1, dtype=torch.float32 if whole else None,
        load_in_4bit=False, use_gradient_checkpointing=False,
    )  # fmt: skip
    layers = sorted({path.rpartition(".")[2] for path in first})
    module = FastLanguageModel.get_peft_model(
        module, r=case.rank, lora_alpha=case.alpha, lora_dropout=case.dropout, target_modules=layers,
        use_gradient_checkpointing=False,
    )  # fmt: skip
    _train(
        {"model": module}, model, first, count, steps, turns, case, bf16=not whole, gradient_checkpointing=False,
        max_length=None,
    )  # fmt: skip


def unsloth_settings() -> dict[str, str]:
    """Environment variables that Unsloth reads once: layers compiled, frozen weights in bfloat16, no questions home."""
    return {"UNSLOTH_CPU_COMPILE": "1", "UNSLOTH_CPU_FROZEN_BF16": "1", "HF_HUB_OFFLINE": "1"}


def _starter(dtype: Any) -> Any:
    from rankwise.base.loading import load
    from rankwise.config.models import ModelConfig
    from rankwise.runs.records import silent

    return load(ModelConfig(name=MODEL, dtype=dtype), silent)


def _train(
    given: dict[str, Any], model: Any, first: dict[str, Any], count: int, steps: int, turns: Turns, case: Case,
    **own: Any,
) -> None:  # fmt: skip
    """SFTTrainer over the benchmark's rows, which stops before each step until it is its turn."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    from rankwise.rows.encoded.batches import Batches

    batches = Batches(sequences(model, count, case), case.batch, 10**9, 0)
    rows = [row for number in range(steps) for row in batches.rows_of(number)]
    data = Dataset.from_list(
        [{"input_ids": list(row.ids), "completion_mask": [int(one) for one in row.loss_mask]} for row in rows]
    )

    class Waiting(TrainerCallback):
        def on_step_begin(self, *given: Any, **named: Any) -> None:
            turns.begin()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **named: Any) -> None:
            if logs and "loss" in logs:
                turns.end(float(logs["loss"]))

    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=case.batch, max_steps=steps, learning_rate=RATE,
        lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, logging_steps=1, report_to="none",
        save_strategy="no", train_sampling_strategy="sequential", completion_only_loss=True, use_cpu=True,
        disable_tqdm=True, **own,
    )  # fmt: skip
    trainer = SFTTrainer(
        args=settings, train_dataset=data, processing_class=model.tokenizer.hub, callbacks=[Waiting()], **given
    )
    begin_at(trainer.model, first)
    trainer.train()
