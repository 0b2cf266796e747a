"""A step of LoRA on a model of the shape of Llama 2 7B, in rankwise's fast form, on this machine.

    python bench/seven_billion.py [--json] [--steps 2] [--layers 32] [--out bench/results/TITLE]

The weights are random and in bfloat16, and no more memory than they need is ever used to make them. LoRA of r 16 lies
on all linear layers. A step has the same two random sequences of 256 tokens each, the second half of each supervised.
Told are the seconds of every step, the most memory held in them, the loss, and the share of the limit that
train_step.py explains. The model is made and trained in a process of its own. Injection is timed apart, on a model
without weights (torch's meta device): the median of five.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from limits import gemm_rate, operations
from memory import forget_peak, resident
from scaling import LENGTH, WHOLE, micro_batches
from stacks import CASES, USUAL, StepBatches, lora_trainer
from telling import parser_of, tell
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.config.adapters import LoraConfig
from rankwise.forward.fused import has_kernels
from rankwise.methods.inject import inject
from rankwise.runs.manifest import peak_rss
from rankwise.system.memory import keep_memory

DOCUMENTS, INJECTIONS, DEVIATION = 2, 5, 0.02

CASE = CASES[USUAL]


def shape_of(layers: int) -> dict[str, Any]:
    """What config.json of Llama-2-7b-hf says."""
    return {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": layers, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32000, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }  # fmt: skip


def without_weights(layers: int) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            return LlamaForCausalLM(LlamaConfig(**shape_of(layers))).eval()
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def random_model(layers: int) -> Any:
    """Each weight is filled where it lies. The angles of positions are made anew, which no weight file holds either."""
    module = without_weights(layers).to_empty(device="cpu")
    module.model.rotary_emb = type(module.model.rotary_emb)(module.config)
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, DEVIATION)
    check_whole(module)
    return module


def check_whole(module: Any) -> None:
    parts = [*module.parameters(), *module.buffers()]
    assert {part.device.type for part in parts} == {"cpu"}, "nothing is left without numbers"
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    width = module.config.hidden_size // module.config.num_attention_heads
    wanted = 10000.0 ** -(torch.arange(0, width, 2) / width)
    torch.testing.assert_close(module.model.rotary_emb.inv_freq, wanted)


def bytes_of(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def trained(layers: int, steps: int) -> dict[str, Any]:
    """In this process, which does nothing else."""
    began = time.perf_counter()
    module = random_model(layers)
    made, weights = time.perf_counter() - began, bytes_of(module)
    keep_memory()
    began = time.perf_counter()
    batches = micro_batches((DOCUMENTS, LENGTH, WHOLE), module.config.vocab_size)
    trainer = lora_trainer(module, CASE, StepBatches(lambda step: batches))
    injected = time.perf_counter() - began
    assert has_kernels(module, LENGTH), "what is timed is what a run would do"
    forget_peak()
    before, records, rows = resident(), trainer.run(), list[dict[str, Any]]()
    for _ in range(steps):
        record = next(records)
        rows.append({"loss": record.loss, "seconds": record.seconds, "gradient_norm": record.gradient_norm})
        print(f"step {record.step}: {record.loss:.4f} in {record.seconds:.1f} s", file=sys.stderr)
    return {
        "weight_bytes": weights, "base_parameters": weights // 2, "seconds_to_make": made,
        "trainable_parameters": sum(parameter.numel() for parameter in trainer.state.parameters),
        "seconds_to_inject": injected, "tokens": record.tokens, "loss_tokens": record.loss_tokens,
        "before_bytes": before, "peak_bytes": peak_rss(), "steps": rows,
    }  # fmt: skip


def trained_apart(layers: int, steps: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--serve", "--layers", str(layers), "--steps", str(steps)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def injections(layers: int) -> list[float]:
    """Seconds of each, on the meta device."""
    module, seconds = without_weights(layers), list[float]()
    for _ in range(INJECTIONS):
        began = time.perf_counter()
        adapters = inject(module, LoraConfig(rank=CASE.rank, alpha=CASE.alpha))
        seconds.append(time.perf_counter() - began)
        adapters.remove()
    return seconds


def measured(layers: int, steps: int) -> dict[str, Any]:
    on_meta = injections(layers)
    rates = [gemm_rate()]
    found = trained_apart(layers, steps)
    rates.append(gemm_rate())
    needed = operations([LENGTH] * DOCUMENTS, found["loss_tokens"], CASE.rank, shape_of(layers))
    for row in found["steps"]:
        row["tokens_per_second"] = found["tokens"] / row["seconds"]
        row["percent_of_limit"] = 100 * needed / row["seconds"] / statistics.median(rates)
    losses = [row["loss"] for row in found["steps"]]
    return {
        "layers": layers, "shape": shape_of(layers), "inject_on_meta_seconds": statistics.median(on_meta),
        "inject_on_meta_all": on_meta, "operations": needed, "gemm": rates, **found,
        "loss_finite": all(map(math.isfinite, losses)), "loss_falls": losses[-1] < losses[0],
    }  # fmt: skip


def show(found: dict[str, Any]) -> None:
    print(f"{found['base_parameters']:,} parameters, {found['trainable_parameters']:,} of adapters")
    print(
        f"injected in {found['inject_on_meta_seconds']:.3f} s without weights, {found['seconds_to_inject']:.2f} s here"
    )
    for number, row in enumerate(found["steps"], start=1):
        print(
            f"step {number}: loss {row['loss']:.4f}, {row['seconds']:.1f} s, {row['tokens_per_second']:.1f} tokens/s, "
            f"{row['percent_of_limit']:.0f} % of the limit"
        )
    weights, before, most = (found[f"{name}_bytes"] / 1e9 for name in ("weight", "before", "peak"))
    print(f"weights {weights:.2f} GB, held before the first step {before:.2f} GB, at most {most:.2f} GB")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        return print(json.dumps(trained(asked.layers, asked.steps)))
    found = measured(asked.layers, asked.steps)
    tell(asked, found, show)


if __name__ == "__main__":
    main()
