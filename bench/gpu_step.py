"""Steps per second on a GPU: the plain form, the kernels, and a loop over peft, on a model of random weights.

    python bench/gpu_step.py [--device cuda] [--width 2048] [--layers 16] [--tokens 4096] [--rounds 6] [--json]

The kernels were written for processors, and on a GPU a run takes the plain form; this says whether that is right on
yours. Documents of 512 tokens, half of each supervised, bfloat16, LoRA of rank 16 on all linear layers; the three make
their steps in turns (ABCCBA), each after a step that is not counted, with the device waited for. All three hold a
model of their own, so memory is not compared. `--device cpu --width 64 --layers 2 --tokens 512` tries it out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from scaling import half_learned
from stacks import CASES, USUAL, StepBatches, lora_trainer, peft_settings
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.rows.encoded.batches import Batch, collate
from rankwise.rows.encoded.packing import flat

CASE, LENGTH, VOCABULARY, HEAD = CASES[USUAL], 512, 32000, 64
Act = Callable[[], float]


def model_of(width: int, layers: int, device: str) -> Any:
    heads = width // HEAD
    config = LlamaConfig(
        hidden_size=width, intermediate_size=width * 11 // 4, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4), vocab_size=VOCABULARY,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def ours(model: Any, batch: Batch, fast: bool, device: str) -> Act:
    steps = lora_trainer(model, CASE, StepBatches(lambda step: [batch]), "fused" if fast else "eager").run()
    return lambda: next(steps).loss


def by_peft(model: Any, batch: Batch, device: str) -> Act:
    from peft import LoraConfig, get_peft_model

    module: Any = get_peft_model(model, LoraConfig(**peft_settings(CASE)))
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer, there = torch.optim.AdamW(learned, lr=1e-4, fused=True), batch.to(device)

    def step() -> float:
        loss = module(input_ids=there.input_ids, labels=there.targets, shift_labels=there.targets, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def timed(act: Act, device: str) -> tuple[float, float]:
    """Loss and seconds."""
    began = time.perf_counter()
    loss = act()
    if device != "cpu":
        getattr(torch, device.partition(":")[0]).synchronize()
    return loss, time.perf_counter() - began


def measured(width: int, layers: int, tokens: int, rounds: int, device: str) -> list[dict[str, Any]]:
    sequences = half_learned(VOCABULARY, tokens // LENGTH, LENGTH)
    padded, (row,) = collate(sequences), flat(sequences, tokens)
    acts = {
        "plain": ours(model_of(width, layers, device), padded, False, device),
        "kernels": ours(model_of(width, layers, device), row, True, device),
        "peft": by_peft(model_of(width, layers, device), padded, device),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [timed(act, device)] for name, act in acts.items()}
    for number in range(rounds):
        for name in acts if number % 2 == 0 else reversed(acts):
            found[name].append(timed(acts[name], device))
    return [
        {
            "stack": name, "tokens_per_second": tokens / statistics.median(seconds for _, seconds in rows[1:]),
            "first_loss": rows[0][0], "last_loss": rows[-1][0],
        }
        for name, rows in found.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "mps")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = measured(asked.width, asked.layers, asked.tokens, asked.rounds, asked.device)
    if asked.json:
        return print(json.dumps(rows))
    for row in rows:
        print(f"{row['stack']:<10}{row['tokens_per_second']:>12,.0f} tokens/s, loss {row['first_loss']:.3f} to "
              f"{row['last_loss']:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
