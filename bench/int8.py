"""A step of LoRA with products in int8 beside one with products in bfloat16, on shapes of real models or on GGUF files.

    python bench/int8.py [--json] [--models smollm2-135m,qwen2.5-0.5b,...] [--layers N] [--rounds 3] [--threads 2]
                         [--tokens 1024] [--memory] [--out bench/results/TITLE]

The weights are random: in bfloat16 for one model, and in int8, whose products are in whole numbers, for the other. Of a
file there are three models: its weights in bfloat16, as they lie and unpacked for each product, and multiplied in int8.
LoRA of r 16 lies on all linear layers. A step has random sequences of 256 tokens, the second half of each learned. All
models are in one process and make their steps in turns, forth and back (ABBA), after one round that is not counted.
Told are the medians of seconds by the clock and of processor time, which other work on the machine changes less, their
ratio, the share of the limit that bfloat16 products allow, and the bytes of the weights. The most memory is measured in
a process for each. --layers takes only the first blocks of a model that is too large to be in memory twice.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from limits import gemm_rate, operations
from memory import forget_peak, resident
from quantized_large import random_model
from scaling import LENGTH, WHOLE, micro_batches
from stacks import CASES, USUAL, StepBatches, lora_trainer
from telling import parser_of, tell

from rankwise.base.loading import load
from rankwise.config.models import ModelConfig
from rankwise.kernels.quantized.formats import use_int8_products, weights_for_int8
from rankwise.kernels.quantized.tensor import stored_bytes, unpack_weights
from rankwise.runs.manifest import peak_rss
from rankwise.system.memory import keep_memory
from rankwise.training.backend import OUTLIERS

CASE = CASES[USUAL]


def products_of(model: str) -> tuple[str, ...]:
    return ("bfloat16", "unpacked", "int8") if model.endswith(".gguf") else ("bfloat16", "int8")


def model_of(model: str, layers: int | None, products: str) -> Any:
    if model.endswith(".gguf"):
        module = load(ModelConfig(name=model, dtype="bfloat16")).module
        module.model.layers = module.model.layers[:layers]
        module.config.num_hidden_layers = len(module.model.layers)
        if products == "bfloat16":
            unpack_weights(module)
    else:
        module = random_model(model, layers, products)
        if module.config.tie_word_embeddings:
            module.tie_weights()
    if products == "int8":
        use_int8_products(module, dict.fromkeys(weights_for_int8(module), tuple(range(OUTLIERS))))
    return module


def steps_of(module: Any, tokens: int) -> Any:
    batches = micro_batches((tokens // LENGTH, LENGTH, WHOLE), module.config.vocab_size)
    return lora_trainer(module, CASE, StepBatches(lambda step: batches)).run()


def timed(model: str, layers: int | None, tokens: int, rounds: int) -> dict[str, Any]:
    modules = {products: model_of(model, layers, products) for products in products_of(model)}
    runs = {products: steps_of(module, tokens) for products, module in modules.items()}
    seconds: dict[str, dict[str, list[float]]] = {name: {"clock": [], "processor": []} for name in modules}
    for number in range(rounds + 1):
        for name in list(modules)[:: 1 if number % 2 else -1]:
            clock, processor = time.perf_counter(), time.process_time()
            next(runs[name])
            taken = {"clock": time.perf_counter() - clock, "processor": time.process_time() - processor}
            for kind, value in taken.items() if number else ():
                seconds[name][kind].append(value)
    config = modules["int8"].config
    needed = operations([LENGTH] * (tokens // LENGTH), tokens // 2, CASE.rank, config.to_dict())
    return {
        "model": model, "layers": config.num_hidden_layers, "tokens": tokens, "threads": torch.get_num_threads(),
        "operations": needed, "bfloat16_rate": gemm_rate(), "seconds": seconds,
        "weight_bytes": {name: sum(map(stored_bytes, module.parameters())) for name, module in modules.items()},
    }  # fmt: skip


def peak(model: str, layers: int | None, tokens: int, products: str) -> dict[str, int]:
    """In this process, which does nothing else."""
    keep_memory()
    run = steps_of(model_of(model, layers, products), tokens)
    forget_peak()
    before = resident()
    next(run)
    return {"before_bytes": before, "peak_bytes": peak_rss()}


def apart(options: argparse.Namespace, model: str, *more: str) -> Any:
    command = [sys.executable, __file__, "--serve", model, "--tokens", str(options.tokens)]
    command += ["--rounds", str(options.rounds), "--threads", str(options.threads), *more]
    command += [] if options.layers is None else ["--layers", str(options.layers)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measured(options: argparse.Namespace, model: str) -> dict[str, Any]:
    found = apart(options, model)
    medians = {
        name: {kind: statistics.median(values) for kind, values in kinds.items()}
        for name, kinds in found["seconds"].items()
    }
    ratios = {
        name: {kind: one[kind] / medians["bfloat16"][kind] for kind in one}
        for name, one in medians.items() if name != "bfloat16"
    }  # fmt: skip
    limit = {name: 100 * found["operations"] / found["bfloat16_rate"] / one["clock"] for name, one in medians.items()}
    memory = {name: apart(options, model, "--peak", name) for name in medians if options.memory}
    return {**found, "medians": medians, "ratios": ratios, "percent_of_limit": limit, "memory": memory}


def show(found: dict[str, Any]) -> None:
    print("| shape | blocks | tokens | threads | products | seconds | ratio | of processor time | % of limit "
          "| weights, GB | most, GB |")  # fmt: skip
    print("|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|")
    for row in found["models"]:
        for name, one in row["medians"].items():
            ratio = row["ratios"].get(name, {"clock": 1.0, "processor": 1.0})
            most = f"{row['memory'][name]['peak_bytes'] / 1e9:.2f}" if row["memory"] else ""
            cells = (
                Path(row["model"]).name.removesuffix(".gguf"), row["layers"], row["tokens"], row["threads"], name,
                f"{one['clock']:.2f}",
                f"{ratio['clock']:.2f}", f"{ratio['processor']:.2f}", f"{row['percent_of_limit'][name]:.0f}",
                f"{row['weight_bytes'][name] / 1e9:.2f}", most,
            )  # fmt: skip
            print(f"| {' | '.join(map(str, cells))} |")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument(
        "--models", help="names of shapes, or GGUF files", default="smollm2-135m,qwen2.5-0.5b,qwen2.5-1.5b,llama-2-7b"
    )
    parser.add_argument("--layers", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--memory", action="store_true", help="measure the most memory as well")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        torch.set_num_threads(options.threads)
        given = (options.serve, options.layers, options.tokens)
        return print(json.dumps(peak(*given, options.peak) if options.peak else timed(*given, options.rounds)))
    tell(options, {"models": [measured(options, model) for model in options.models.split(",")]}, show)


if __name__ == "__main__":
    main()
