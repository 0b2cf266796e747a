"""Tokens per second of whole optimizer steps: rankwise, its plain form, loops over peft, and TRL, on the same rows.

    python bench/train_step.py [--json] [--rows 64] [--rounds 2] [--stacks peft-bf16,...] [--out bench/results/TITLE]

Each stack is a process of its own, so that its memory is its own. Every other stack makes its steps in turns with
rankwise, one at a time, in the order ABBA, so that a machine whose speed drifts does so for both. All have the same
rows of Dolly ($RANKWISE_DATA/dolly) in the same order, the same labels, the same first A (B is zero), r 16 on all
linear layers, AdamW, clipping, and the mean over the supervised tokens of the whole step. Memory is kept
(cli/allocator.py) by ours and by those at their best. TRL counts accuracy and entropy too, as it always does. A
process's first step is not counted.

A limit is printed beside what was reached: the floating-point operations that a token needs (performance by the formula
in `operations`), at the rate of this machine's best bfloat16 matrix product, measured before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

BATCH, RANK, ALPHA, RATE, LONGEST = 8, 16, 32.0, 1e-4, 512
OURS, STACKS = "rankwise", ("rankwise-plain", "peft-fp32", "peft-bf16", "peft-best", "trl-fp32", "trl-bf16", "trl-best")
REFERENCE = "reference"
"""The plain form in float32, whose losses are what the others' are compared with."""
Step = Callable[[int], float]
"""The number of a step to its loss."""


def rankwise_stack(name: str, count: int) -> Step:
    from rankwise.training.step import optimizer_step

    state, batches, loss_of = rankwise_training(name, count)

    def step(number: int) -> float:
        return optimizer_step(state, batches.at(number), loss_of, 0.0)[0].loss

    return step


def rankwise_training(name: str, count: int) -> tuple[Any, Any, Any]:
    """State, batches and loss, as `optimizer_step` takes them."""
    from rankwise.cli.allocator import keep_memory
    from rankwise.data.batches import Batches, portion
    from rankwise.data.flat import flat
    from rankwise.models.causal import SupervisedLogits
    from rankwise.models.fast import FastLoss, is_fast
    from rankwise.models.loading import load
    from rankwise.run.records import silent
    from rankwise.spec.models import ModelSpec
    from rankwise.training.losses import summed

    fast = name == "rankwise"
    keep_memory()
    dtype = "float32" if name == REFERENCE else "bfloat16"
    model = load(ModelSpec(name="smollm2-135m", dtype=dtype), silent)
    state = lora_state(model.module)
    batches = Batches(documents(model, count), BATCH, 2048, 0, flat if fast else portion)
    assert not fast or is_fast(model.module, LONGEST), "what is timed is what a run would do"
    loss_of = FastLoss(model.module) if fast else summed(SupervisedLogits(model.module))
    return state, batches, loss_of


def lora_state(module: Any) -> Any:
    """Of a training that adapts all linear layers of `module`, which it injects."""
    from rankwise.adapters.adapter_set import inject
    from rankwise.adapters.allocation import FixedRanks
    from rankwise.spec.adapters import LoraSpec

    return state_of(FixedRanks(inject(module, LoraSpec(rank=RANK, alpha=ALPHA))))


def state_of(allocator: Any, rate: float = RATE) -> Any:
    import torch

    from rankwise.spec.training import TrainingSpec
    from rankwise.training.state import TrainState, adamw

    optimizer = adamw(allocator, TrainingSpec())
    return TrainState(allocator, optimizer, lambda step: rate, 10**6, 1.0, torch.device("cpu"))


def peft_stack(name: str, count: int) -> Step:
    """A loop as peft's documentation has it, over padded batches with a mask and labels; `best`: adapters in bfloat16
    too, the fused optimizer, and float32 products that may be made of bfloat16 ones."""
    import torch
    from peft import LoraConfig, get_peft_model

    from rankwise.cli.allocator import keep_memory
    from rankwise.data.batches import Batches, portion
    from rankwise.models.loading import load
    from rankwise.run.records import silent
    from rankwise.spec.models import ModelSpec

    best = name == "peft-best"
    if best:
        keep_memory()
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # pyright: ignore[reportAttributeAccessIssue]
    model = load(ModelSpec(name="smollm2-135m", dtype="float32" if name == "peft-fp32" else "bfloat16"), silent)
    first = first_factors(model)
    config = LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules="all-linear", task_type="CAUSAL_LM")
    module: Any = get_peft_model(model.module, config, autocast_adapter_dtype=not best)
    begin_at(module, first)
    module.train()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=best)
    batches = Batches(documents(model, count), BATCH, 10**9, 0, portion)

    def step(number: int) -> float:
        (batch,) = batches.at(number)
        labels = torch.nn.functional.pad(batch.targets, (1, 0), value=-100)[:, :-1]
        mask = torch.ones_like(batch.inputs)
        output = module(input_ids=batch.inputs, attention_mask=mask, labels=labels, use_cache=False)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return output.loss.item()

    return step


def first_factors(model: Any) -> dict[str, Any]:
    """What rankwise begins with, by path."""
    from rankwise.adapters.adapter_set import inject
    from rankwise.spec.adapters import LoraSpec

    ours = inject(model.module, LoraSpec(rank=RANK, alpha=ALPHA))
    first = {path: adapter.factors()[0].detach().clone() for path, adapter in ours.adapters().items()}
    ours.eject()
    return first


def begin_at(module: Any, first: dict[str, Any]) -> None:
    import torch

    with torch.no_grad():
        for path, values in first.items():
            module.base_model.model.get_submodule(path).lora_A["default"].weight.copy_(values)


class Turns(Protocol):
    """What a trainer that has a loop of its own is told to wait by."""

    def begin(self) -> None: ...

    def end(self, loss: float) -> None: ...


def trl_train(name: str, count: int, steps: int, turns: Turns) -> None:
    """TRL's SFTTrainer. As documented: its defaults, in float32 or under bfloat16 autocast. `best`: weights in
    bfloat16, no checkpointing, the fused optimizer."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    from rankwise.cli.allocator import keep_memory
    from rankwise.data.batches import Batches
    from rankwise.models.loading import load
    from rankwise.run.records import silent
    from rankwise.spec.models import ModelSpec

    best = name == "trl-best"
    if best:
        keep_memory()
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # pyright: ignore[reportAttributeAccessIssue]
    model = load(ModelSpec(name="smollm2-135m", dtype="bfloat16" if best else "float32"), silent)
    batches = Batches(documents(model, count), BATCH, 2048, 0)
    rows = [row for number in range(steps) for row in batches.rows_of(number)]
    data = Dataset.from_list(
        [{"input_ids": list(row.ids), "completion_mask": [int(one) for one in row.learned]} for row in rows]
    )

    class Waiting(TrainerCallback):
        def on_step_begin(self, *given: Any, **named: Any) -> None:
            turns.begin()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **named: Any) -> None:
            if logs and "loss" in logs:
                turns.end(float(logs["loss"]))

    own: dict[str, Any] = {"gradient_checkpointing": False, "optim": "adamw_torch_fused"} if best else {}
    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=BATCH, max_steps=steps, learning_rate=RATE,
        lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, logging_steps=1, report_to="none",
        save_strategy="no", train_sampling_strategy="sequential", completion_only_loss=True, use_cpu=True,
        bf16=name == "trl-bf16", max_length=LONGEST, disable_tqdm=True, **own,
    )  # fmt: skip
    adapter = LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules="all-linear", task_type="CAUSAL_LM")
    tokenizer = model.tokenizer.hub
    first = first_factors(model)
    trainer = SFTTrainer(
        model=model.module, args=settings, train_dataset=data, peft_config=adapter, processing_class=tokenizer,
        callbacks=[Waiting()],
    )  # fmt: skip
    begin_at(trainer.model, first)
    trainer.train()


def documents(model: Any, count: int) -> list[Any]:
    from rankwise.data.encoding import Encoder
    from rankwise.data.sources import open_source
    from rankwise.spec.data import DataSpec

    spec = DataSpec(path=str(Path(os.environ["RANKWISE_DATA"]) / "dolly" / "train.jsonl"), max_length=LONGEST)
    reading = open_source(spec, spec.all_sources[0])
    examples = [example for chunk in reading.chunks() for row in chunk for example in row][: 3 * count]
    outcomes = Encoder(model.template, model.tokenizer, spec, LONGEST).encode(examples)
    return [document for outcome in outcomes for document in outcome.documents][:count]


class Served:
    """Steps that are asked for by their number on stdin, one line of JSON on stdout for each. What a step has in tokens
    is known to who asks."""

    def __init__(self) -> None:
        self._began = 0.0

    def begin(self) -> None:
        if self._began == 0.0:
            print("ready", flush=True)
        if not sys.stdin.readline():
            raise SystemExit
        self._began = time.perf_counter()

    def end(self, loss: float, **more: Any) -> None:
        from rankwise.run.manifest import peak_rss

        row = {"loss": loss, "seconds": time.perf_counter() - self._began, "rss": peak_rss(), **more}
        print(json.dumps(row), flush=True)


def serve(name: str, count: int, steps: int) -> None:
    turns = Served()
    if name.startswith("trl"):
        return trl_train(name, count, steps, turns)
    step = (peft_stack if name.startswith("peft") else rankwise_stack)(name, count)
    for number in range(steps):
        turns.begin()
        turns.end(step(number))


class Stack:
    """A process that makes its steps when it is asked to. `script` answers to --serve."""

    def __init__(self, name: str, count: int, steps: int, script: str = __file__) -> None:
        command = [sys.executable, script, "--serve", name, "--rows", str(count), "--steps", str(steps)]
        self.name, self.rows = name, list[dict[str, Any]]()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer("ready")

    def step(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.rows.append(json.loads(self._answer('{"loss"')))

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self, beginning: str) -> str:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith(beginning):
                return line
        raise SystemExit(f"{self.name} ended: {self._process.wait()}")


def operations(lengths: list[int], supervised: int, shape: Mapping[str, Any] | None = None) -> float:
    """Of a step: all linear layers forward and to their inputs, causal attention (its backward pass two and a half
    times its forward one), adapters (three times their forward), and the head at supervised tokens, twice. `shape` is
    what a model's config.json says, the starter's by default."""
    shape = shape if shape is not None else starter_shape()
    width, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    heads, groups = shape["num_attention_heads"], shape["num_key_value_heads"]
    narrow = width * groups // heads
    sizes = [(width, width)] * 2 + [(width, narrow)] * 2 + [(width, inner)] * 2 + [(inner, width)]
    linear = layers * sum(2 * i * o for i, o in sizes)
    low = layers * sum(2 * RANK * (i + o) for i, o in sizes)
    attention = sum(3.5 * 2 * length**2 * width * layers for length in lengths)
    return sum(lengths) * (2 * linear + 3 * low) + attention + supervised * 2 * 2 * shape["vocab_size"] * width


def starter_shape() -> dict[str, Any]:
    from rankwise.models.inspection import read_json
    from rankwise.models.sources import find
    from rankwise.run.records import silent
    from rankwise.spec.models import ModelSpec

    return read_json(find(ModelSpec(name="smollm2-135m"), silent).folder / "config.json")


def gemm_rate() -> float:
    """Of the best of some large bfloat16 products, in operations per second."""
    import torch

    best = 0.0
    for size in (1024, 2048):
        x, y = (torch.randn(size, size, dtype=torch.bfloat16) for _ in range(2))
        for _ in range(12):
            began = time.perf_counter()
            x @ y
            best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def in_turns(names: list[str], count: int, steps: int, script: str = __file__) -> dict[str, list[dict[str, Any]]]:
    stacks = [Stack(name, count, steps, script) for name in names]
    try:
        for number in range(steps):
            for stack in stacks if number % 2 == 0 else reversed(stacks):
                stack.step()
    finally:
        for stack in stacks:
            stack.end()
    return {stack.name: stack.rows for stack in stacks}


def measured(names: list[str], count: int, rounds: int) -> dict[str, Any]:
    steps, rates, turns = max(2, count // BATCH) * rounds, [gemm_rate()], list[dict[str, Any]]()
    for name in names:
        turns.append(in_turns([OURS, name], count, steps))
        rates.append(gemm_rate())
        print(f"{name} is done", file=sys.stderr)
    return {"gemm": rates, "turns": turns, "reference": in_turns([REFERENCE], count, steps)[REFERENCE]}


def told(found: dict[str, Any], count: int) -> list[dict[str, Any]]:
    from rankwise.data.batches import Batches, asked
    from rankwise.models.loading import load
    from rankwise.run.records import silent
    from rankwise.spec.models import ModelSpec

    batches = Batches(documents(load(ModelSpec(name="smollm2-135m"), silent), count), BATCH, 2048, 0)
    rate, reference = statistics.median(found["gemm"]), [row["loss"] for row in found["reference"]]
    steps_rows = [batches.rows_of(number) for number in range(len(reference))]
    lengths = [[asked(row) for row in rows] for rows in steps_rows]
    supervised = [sum(sum(row.learned[1:]) for row in rows) for rows in steps_rows]

    def row_of(name: str, ours: list[dict[str, Any]], steps: list[dict[str, Any]]) -> dict[str, Any]:
        counted = list(enumerate(steps))[1:]
        speeds = [sum(lengths[at]) / row["seconds"] for at, row in counted]
        shares = [operations(lengths[at], supervised[at]) / row["seconds"] / rate for at, row in counted]
        return {
            "stack": name, "tokens_per_second": statistics.median(speeds), "slowest": min(speeds),
            "fastest": max(speeds),
            "supervised_per_second": statistics.median(supervised[at] / row["seconds"] for at, row in counted),
            "seconds_per_step": statistics.median(row["seconds"] for _, row in counted),
            "peak_rss_bytes": max(row["rss"] for row in steps), "percent_of_limit": 100 * statistics.median(shares),
            "loss_gap": statistics.mean(
                abs(row["loss"] - wanted) for row, wanted in zip(steps, reference, strict=True)
            ),
            "rankwise_times_faster": statistics.median(
                row["seconds"] / own["seconds"] for own, row in zip(ours[1:], steps[1:], strict=True)
            ),
            "steps": len(counted),
        }  # fmt: skip

    first = found["turns"][0][OURS]
    rows = [row_of(OURS, first, first)]
    return rows + [row_of(name, turn[OURS], turn[name]) for turn in found["turns"] for name in turn if name != OURS]


def keep(title: Path, found: dict[str, Any]) -> None:
    """As TITLE.json, with what it was measured on."""
    from rankwise.run.manifest import machine, versions

    facts = {"versions": versions(), "machine": {key: value for key, value in machine().items() if key != "system"}}
    title.parent.mkdir(parents=True, exist_ok=True)
    title.with_suffix(".json").write_text(json.dumps(found | facts, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--stacks", default=",".join(STACKS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        return serve(asked.serve, asked.rows, asked.steps)
    found = measured(asked.stacks.split(","), asked.rows, asked.rounds)
    rows = told(found, asked.rows)
    if asked.out:
        keep(asked.out, {"rows": rows, **found})
    if asked.json:
        print(json.dumps(rows))
        return
    heads = ("tokens/s", "min", "max", "s/step", "peak GB", "% limit", "loss gap", "ours is")
    print(f"{'stack':<16}" + "".join(f"{head:>10}" for head in heads))
    for row in rows:
        print(
            f"{row['stack']:<16}{row['tokens_per_second']:>10,.0f}{row['slowest']:>10,.0f}{row['fastest']:>10,.0f}"
            f"{row['seconds_per_step']:>10.2f}{row['peak_rss_bytes'] / 1e9:>10.2f}{row['percent_of_limit']:>10.0f}"
            f"{row['loss_gap']:>10.4f}{row['rankwise_times_faster']:>9.2f}x"
        )


if __name__ == "__main__":
    main()
