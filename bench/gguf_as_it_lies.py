"""A GGUF file trained as it lies: bytes of its weights, memory of the process, and five steps of LoRA.

    python bench/gguf_as_it_lies.py model.gguf [tokens]

All linear layers are adapted, r = 16. The text is this file.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import torch
import transformers
from transformers import AutoConfig, AutoTokenizer

from rankwise.base.gguf.header import read_gguf_header
from rankwise.base.gguf.mapped import gguf_folder, gguf_tensors, quantization_of
from rankwise.config.adapters import LoraConfig
from rankwise.kernels.quantized.tensor import stored_bytes
from rankwise.methods.inject import inject
from rankwise.system.memory import keep_memory

STEPS, RATE = 5, 1e-3
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def main(file: Path, tokens: int) -> None:
    keep_memory()
    before = psutil.Process().memory_full_info().uss
    clock = time.perf_counter()
    folder = gguf_folder(file, lambda event: print(event))
    assert folder is not None
    state = gguf_tensors(file, folder, torch.bfloat16)
    config = AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(
        None, config=config, state_dict=state, dtype=torch.bfloat16
    )
    text = AutoTokenizer.from_pretrained(folder)
    weights = sum(map(stored_bytes, state.values()))
    dense = sum(2 * one.numel() for one in state.values())
    types = quantization_of(read_gguf_header(file))
    print(f"{file.name}: {types}; weights {weights / 1e6:.1f} MB, in bfloat16 {dense / 1e6:.1f} MB")
    own = (psutil.Process().memory_full_info().uss - before) / 1e6
    print(f"loaded in {time.perf_counter() - clock:.1f} s; {own:.0f} MB of the process's own memory")
    adapters = inject(model, LoraConfig(targets=TARGETS, rank=16, alpha=32.0))
    optimizer = torch.optim.AdamW(list(adapters.named_parameters().values()), lr=RATE)
    ids = text(Path(__file__).read_text(encoding="utf-8"), return_tensors="pt").input_ids[:, :tokens]
    for step in range(STEPS):
        clock = time.perf_counter()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(
            f"step {step + 1}: loss {loss.item():.4f}, {ids.shape[1]} tokens, {time.perf_counter() - clock:.1f} s",
            flush=True,
        )
    print(f"largest resident memory {psutil.Process().memory_info().rss / 1e6:.0f} MB at the end")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 256)
