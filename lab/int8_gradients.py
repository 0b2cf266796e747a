"""Do gradients through products in int8 point where those through unpacked weights do?

    python lab/int8_gradients.py RUN [--rows 8]

RUN was trained with products in int8, as lab/quantized.py keeps such runs. Its first rows give a loss by the kernels,
with the adapter as it began (A as drawn, B nearly zero) and as it ended. For each block of the model, the gradient of
all of the adapter's numbers in it is compared: the cosine between products in int8 and in bfloat16.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from torch.nn import functional as F

from rankwise.config.modules import layer_number
from rankwise.forward.fused import FusedLoss
from rankwise.inference.tuned_model import load_tuned
from rankwise.rows.encoded.packing import flat
from rankwise.rows.sources import open_source
from rankwise.rows.text.encode import Encoder
from rankwise.training.backend import use_products


def gradients(module: Any, batches: list[Any], named: dict[str, torch.nn.Parameter]) -> dict[int, torch.Tensor]:
    """By the number of the block."""
    total = sum(FusedLoss(module)(batch) for batch in batches)
    found = torch.autograd.grad(total, list(named.values()))
    blocks: dict[int, list[torch.Tensor]] = {}
    for name, one in zip(named, found, strict=True):
        blocks.setdefault(layer_number(name) or 0, []).append(one.flatten())
    return {number: torch.cat(parts) for number, parts in blocks.items()}


def rows_of(tuned: Any, count: int) -> list[Any]:
    """The first rows that the run was trained on."""
    spec = tuned.artifact.run.experiment.data
    reading = open_source(spec, spec.all_sources[0])
    examples = [example for chunk in reading.chunks() for row in chunk for example in row][:count]
    model = tuned.model
    outcomes = Encoder(model.template, model.tokenizer, spec, spec.max_length).encode(examples)
    return [sequence for outcome in outcomes for sequence in outcome.sequences]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--rows", type=int, default=8)
    given = parser.parse_args()
    tuned = load_tuned(given.run)
    module, products = tuned.model.module, tuned.artifact.run.manifest.products
    batches = flat(rows_of(tuned, given.rows), 2048)
    named = {name: one for name, one in module.named_parameters() if name.endswith((".A", ".B"))}
    for one in named.values():
        one.requires_grad_(True)
    print("| adapter | least cosine of a block | block | median | of all |")
    print("|---|---:|---:|---:|---:|")
    for when in ("as trained", "as it began"):
        if when == "as it began":  # A has no gradient while B is zero
            named = {name: one for name, one in named.items() if name.endswith(".B")}
            for one in named.values():
                one.data.zero_()
        use_products(module, products)
        int8 = gradients(module, batches, named)
        use_products(module, None)
        exact = gradients(module, batches, named)
        cosines = {number: F.cosine_similarity(int8[number], exact[number], 0).item() for number in exact}
        least = min(cosines, key=lambda number: cosines[number])
        whole = F.cosine_similarity(torch.cat(list(int8.values())), torch.cat(list(exact.values())), 0).item()
        print(f"| {when} | {cosines[least]:.4f} | {least} | {statistics.median(cosines.values()):.4f} | {whole:.4f} |")


if __name__ == "__main__":
    main()
