"""A merge of the shape of Llama 2 7B through files: memory and processor time on this machine.

    python bench/merging.py FOLDER [--layers 32] [--rank 16] [--json] [--out bench/results/TITLE]

FOLDER gets 13.5 GB of random bfloat16 weights in three shards and an adapter on all linear layers, then as much again
for the merged model; all of it is deleted at the end. The merge runs in a process of its own. Told are the processor
time, the time that passed, and the most memory beyond what the process had after its imports, pages of mapped files
included.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from memory import forget_peak, resident
from safetensors.torch import save_file
from telling import parser_of, tell
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.base.tensor_files import INDEX, header_of, open_writer
from rankwise.runs.manifest import peak_rss
from rankwise.system.files import write_json

SHARD = 4_900_000_000
BLOCK = 1 << 25
"""Random numbers that are drawn; the weights are this block again and again."""


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--measure", action="store_true", help="for the process that this one starts")
    chosen = parser.parse_args()
    if chosen.measure:
        print(json.dumps(measured(chosen.folder)))
        return
    tell(chosen, results(chosen.folder, chosen.layers, chosen.rank), show)


def show(found: dict[str, Any]) -> None:
    one = found["merge"]
    print(
        f"{found['base_bytes'] / 1e9:.1f} GB in {one['processor_seconds']:.1f} s of processor time "
        f"({one['seconds']:.0f} s), {one['peak_bytes'] / 1e6:,.0f} MB beyond the imports, the process "
        f"{one['process_peak_bytes'] / 1e6:,.0f} MB"
    )
    print(f"peak of the merge: {found['merge_peak_of_a_shard']:.3f} of the largest shard")


def results(folder: Path, layers: int, rank: int) -> dict[str, Any]:
    folder.mkdir(parents=True)
    try:
        shards = make_base(folder / "base", layers)
        make_adapter(folder / "adapter", folder / "base", layers, rank)
        merged = child(folder)
        largest = max(shards)
    finally:
        shutil.rmtree(folder)
    return {
        "layers": layers, "rank": rank, "base_bytes": sum(shards), "largest_shard_bytes": largest,
        "merge": merged, "merge_peak_of_a_shard": merged["peak_bytes"] / largest,
    }  # fmt: skip


def child(folder: Path) -> dict[str, Any]:
    words = [sys.executable, __file__, str(folder), "--measure"]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def measured(folder: Path) -> dict[str, Any]:
    import transformers

    from rankwise.commands.merge import merge

    _ = transformers.LlamaForCausalLM, transformers.AutoConfig
    forget_peak()
    before, began, processor = resident(), time.perf_counter(), time.process_time()
    result = merge(folder / "adapter", folder / "merged")
    return {
        "largest_error_of_change": max(one.of_change for one in result.roundings),
        "processor_seconds": time.process_time() - processor, "seconds": time.perf_counter() - began,
        "peak_bytes": peak_rss() - before, "process_peak_bytes": peak_rss(),
    }  # fmt: skip


def make_base(folder: Path, layers: int) -> list[int]:
    folder.mkdir()
    config = LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=32, tie_word_embeddings=False, architectures=["LlamaForCausalLM"], dtype="bfloat16",
    )  # fmt: skip
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    block = (torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, value in model.state_dict().items():
        if size and size + value.numel() * 2 > SHARD:
            shards, size = [*shards, []], 0
        shards[-1].append((name, tuple(value.shape)))
        size += value.numel() * 2
    places: dict[str, str] = {}
    sizes: list[int] = []
    for number, entries in enumerate(shards):
        file = folder / f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        header = header_of(((name, "BF16", shape) for name, shape in entries), {"format": "pt"})
        with open_writer(file, header) as writer:
            for name, shape in entries:
                left = torch.Size(shape).numel()
                while left:
                    writer.add(block[: min(left, BLOCK)])
                    left -= min(left, BLOCK)
                places[name] = file.name
            sizes.append(writer.finish().bytes)
    write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes)}, "weight_map": places})
    return sizes


def make_adapter(folder: Path, base: Path, layers: int, rank: int) -> None:
    folder.mkdir()
    sizes = {"q_proj": (4096, 4096), "k_proj": (4096, 4096), "v_proj": (4096, 4096), "o_proj": (4096, 4096),
             "gate_proj": (4096, 11008), "up_proj": (4096, 11008), "down_proj": (11008, 4096)}  # fmt: skip
    generator, tensors = torch.Generator().manual_seed(1), {}
    for layer in range(layers):
        for name, (inside, outside) in sizes.items():
            part = "self_attn" if name[0] in "qkvo" else "mlp"
            path = f"base_model.model.model.layers.{layer}.{part}.{name}"
            tensors[f"{path}.lora_A.weight"] = torch.randn(rank, inside, generator=generator) / inside**0.5
            tensors[f"{path}.lora_B.weight"] = torch.randn(outside, rank, generator=generator) * 0.003
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(folder / "adapter_config.json", {
        "peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": sorted(sizes), "bias": "none",
        "base_model_name_or_path": str(base.absolute()), "task_type": "CAUSAL_LM",
    })  # fmt: skip


if __name__ == "__main__":
    main()
