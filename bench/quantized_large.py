"""A step of LoRA on large Llama shapes with random weights in bfloat16, int8 and NF4, one after another in one run.

    python bench/quantized_large.py [--model llama-2-7b] [--formats bfloat16,nf4,int8] [--steps 2] [--out TITLE]
                                    [--recompute nf4=3,int8=7]

LoRA of r 16 lies on all linear layers. A step has 1,024 tokens: four random sequences of 256, the second half of each
learned. Bases in fewer bits compute a step in parts of 512 tokens, which halves the activations; bfloat16 computes it
as one. --recompute names how many blocks of a format use activation checkpointing. The packed parts are drawn at
random, so no base in full precision is ever in memory. Each format runs in a process of its own. The table has the
seconds of the fastest step, the ratio to bfloat16, the bytes of the weights and the most memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import torch
from memory import forget_peak, resident
from scaling import LENGTH, WHOLE, micro_batches
from seven_billion import DEVIATION, shape_of
from stacks import CASES, USUAL, StepBatches, lora_trainer
from telling import parser_of, tell
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.kernels.quantized.formats import FORMATS
from rankwise.kernels.quantized.nf4 import BLOCK, OUTER
from rankwise.kernels.quantized.tensor import QuantizedTensor, stored_bytes
from rankwise.runs.manifest import peak_rss
from rankwise.system.memory import keep_memory

DOCUMENTS, PART = 4, 512
SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": {},
    "llama-3-8b": {"intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256},
    "llama-2-13b": {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
    "smollm2-135m": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "qwen2.5-1.5b": {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""What differs from Llama 2 7B."""


def random_parts(format: str, shape: tuple[int, int]) -> list[Tensor]:
    """Parts that stand for weights of the usual size."""
    rows, columns = shape
    if format == "int8":
        scales = torch.full((rows,), 3 * DEVIATION / 127)
        return [torch.randint(-127, 128, shape, dtype=torch.int8), scales]
    blocks = rows * columns // BLOCK
    outer = torch.full((-(-blocks // OUTER),), DEVIATION)
    codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
    return [codes, torch.randint(0, 256, (blocks,), dtype=torch.uint8), outer, torch.tensor([2 * DEVIATION])]


@torch.no_grad()
def random_model(model: str, layers: int | None, format: str) -> Any:
    """Each weight is filled where it lies."""
    shape = shape_of(32) | SHAPES[model] | ({} if layers is None else {"num_hidden_layers": layers})
    torch.manual_seed(0)
    with torch.device("meta"):
        module: Any = LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16).eval()
    for path, part in module.named_modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            packed = format != "bfloat16" and type(part) is nn.Linear and path != "lm_head"
            value = torch.empty(parameter.shape, dtype=torch.bfloat16)
            if packed:
                rows, columns = parameter.shape
                parts = random_parts(format, (rows, columns))
                value = QuantizedTensor(FORMATS[format], parts, (rows, columns), torch.bfloat16)
            elif path.endswith("norm"):
                value.fill_(1.0)
            else:
                value.normal_(0.0, DEVIATION)
            setattr(part, name, nn.Parameter(value, requires_grad=False))
    module.model.rotary_emb = type(module.model.rotary_emb)(module.config)
    return module


def trained(model: str, layers: int | None, format: str, steps: int, recompute: int) -> dict[str, Any]:
    """In this process, which does nothing else."""
    module = random_model(model, layers, format)
    weights = sum(stored_bytes(parameter) for parameter in module.parameters())
    keep_memory()
    part = WHOLE if format == "bfloat16" else PART
    batches = micro_batches((DOCUMENTS, LENGTH, part), module.config.vocab_size)
    trainer = lora_trainer(module, CASES[USUAL], StepBatches(lambda step: batches), recompute=recompute)
    forget_peak()
    before, records, rows = resident(), trainer.run(), list[dict[str, Any]]()
    for _ in range(steps):
        began = time.perf_counter()
        record = next(records)
        rows.append({"loss": record.loss, "seconds": time.perf_counter() - began})
        print(f"{format}: step {record.step}, loss {record.loss:.4f}, {rows[-1]['seconds']:.1f} s", file=sys.stderr)
    return {
        "format": format, "weight_bytes": weights, "before_bytes": before, "peak_bytes": peak_rss(), "steps": rows,
        "tokens": record.tokens, "part": min(part, DOCUMENTS * LENGTH), "recomputed": recompute,
    }  # fmt: skip


def trained_apart(model: str, layers: int | None, format: str, steps: int, recompute: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--serve", format, "--model", model, "--steps", str(steps)]
    command += ["--recompute", f"{format}={recompute}"]
    command += [] if layers is None else ["--layers", str(layers)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def show(found: dict[str, Any]) -> None:
    rows = found["formats"]
    fastest = {row["format"]: min(step["seconds"] for step in row["steps"]) for row in rows}
    print(
        f"| {found['model']} | weights | before the step | peak | step | to bfloat16 | tokens at once "
        "| blocks recomputed |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        weights, before, peak = (row[f"{name}_bytes"] / 1e9 for name in ("weight", "before", "peak"))
        ratio = f"{fastest[row['format']] / fastest['bfloat16']:.2f}" if "bfloat16" in fastest else ""
        print(
            f"| {row['format']} | {weights:.2f} GB | {before:.2f} GB | {peak:.2f} GB | {fastest[row['format']]:.1f} s "
            f"| {ratio} | {row['part']:,} | {row['recomputed']} |"
        )


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--formats", default="bfloat16,nf4,int8")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--recompute", default="")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    pairs = (one.partition("=") for one in options.recompute.split(",") if one)
    recompute = {format: int(count) for format, _, count in pairs}
    given = (options.model, options.layers)
    if options.serve:
        return print(json.dumps(trained(*given, options.serve, options.steps, recompute.get(options.serve, 0))))
    rows = [trained_apart(*given, one, options.steps, recompute.get(one, 0)) for one in options.formats.split(",")]
    tell(options, {"model": options.model, "layers": options.layers, "formats": rows}, show)


if __name__ == "__main__":
    main()
