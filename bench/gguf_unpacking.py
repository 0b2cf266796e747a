"""Milliseconds for which a weight of 4096 x 4096 in GGUF's blocks is unpacked, beside products with it.

    python bench/gguf_unpacking.py [threads]

Medians and minima of the wall time, and the least processor time of the calling thread, which other programs on the
machine change less. Plain is torch operation by operation, compiled is fused by torch's compiler.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from rankwise.kernels.quantized.gguf import FORMATS
from rankwise.kernels.regions import compiled_regions
from rankwise.system.memory import keep_memory

SIDE, REPEATS, WARM = 4096, 9, 2


def measured(function: Callable[[], object]) -> str:
    for _ in range(WARM):
        function()
    wall, processor = [], []
    for _ in range(REPEATS):
        before = time.perf_counter(), time.thread_time()
        function()
        wall.append(1e3 * (time.perf_counter() - before[0]))
        processor.append(1e3 * (time.thread_time() - before[1]))
    return f"{median(wall):8.1f} {min(wall):8.1f} {min(processor):8.1f}"


def all_types(label: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, form in FORMATS.items():
        size = SIDE // form.numbers * form.bytes
        part = torch.randint(0, 256, (SIDE, size), dtype=torch.uint8, generator=generator)
        print(f"{label:9} {name:6} {measured(lambda: form.unpack([part], (SIDE, SIDE), torch.bfloat16))}", flush=True)  # noqa: B023


def main(threads: int) -> None:
    keep_memory()
    torch.set_num_threads(threads)
    print(f"{threads} threads; milliseconds: median, least, least of the calling thread's processor time")
    weight = torch.randn(SIDE, SIDE).bfloat16()
    for tokens in (512, 1024):
        x = torch.randn(tokens, SIDE).bfloat16()
        print(f"product of {tokens:4} tokens {measured(lambda: x @ weight.T)}", flush=True)  # noqa: B023
    all_types("plain")
    with tempfile.TemporaryDirectory() as cache, compiled_regions(Path(cache)):
        all_types("compiled")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
