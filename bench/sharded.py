"""What a base that is split over processes (`--shard`) leaves in the memory of each of them, and what it costs in time.

    python bench/sharded.py FOLDER [--model random-360m] [--dtype float32] [--rows 4] [--tokens 128] [--steps 3]
    ... [--json] [--out TITLE]

Three cells: one process, two with the whole base in each, and two with half of it each. In each process, of memory that
is its own and no page of a file:

    loaded      after loading the base, less what was there before
    peak        the most that was there in 3 steps of LoRA, likewise, looked at every 5 ms
    seconds     of a step, the median

The logits of both kinds of processes must be those of one, bit for bit. The model has the shape of SmolLM2-360M and
random weights.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from random_models import RANDOM, model_of
from telling import parser_of, tell

CELLS = {"one": (1, False), "two": (2, False), "two, sharded": (2, True)}
LONGEST = 900.0


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=RANDOM)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    model = model_of(chosen.model, chosen.folder)
    settings = {"dtype": chosen.dtype, "rows": chosen.rows, "tokens": chosen.tokens, "steps": chosen.steps}
    cells = {name: cell(chosen.folder, model, name, settings) for name in CELLS}
    whole = cells["one"]["processes"][0]["loaded_bytes"]
    found = {
        "model": chosen.model, **settings, "cells": cells,
        "share_of_one": {
            name: max(one["loaded_bytes"] for one in made["processes"]) / whole for name, made in cells.items()
        },
        "logits_equal": len({one["logits"] for made in cells.values() for one in made["processes"]}) == 1,
    }  # fmt: skip
    tell(chosen, found, show)


def cell(folder: Path, model: str, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    size, sharded = CELLS[name]
    given = json.dumps({"model": model, "sharded": sharded, "out": str(folder.absolute()), **settings})
    words = [sys.executable] if size == 1 else [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), "--local-addr",
        "localhost",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "SHARDED_CELL": given}
    subprocess.run([*words, __file__], check=True, env=environment, timeout=LONGEST)
    files = [folder / f"process-{rank}.json" for rank in range(size)]
    return {"processes": [json.loads(file.read_text()) for file in files]}


def measure(model: str, sharded: bool, out: str, dtype: str, rows: int, tokens: int, steps: int) -> None:
    """In each process."""
    import torch

    from rankwise.base.loading import load
    from rankwise.config.models import ModelConfig
    from rankwise.training.world import join

    world = join()
    world.barrier()
    imported(sharded)
    gc.collect()
    before = private_bytes()
    with watched() as loading:
        loaded = load(ModelConfig.model_validate({"name": model, "dtype": dtype, "device": "cpu", "sharded": sharded}))
    after = private_bytes()
    with torch.no_grad():
        logits = loaded.module(input_ids=torch.arange(32)[None]).logits
    digest = digest_of(logits)
    del logits
    trainer = trainer_of(loaded.module, world, rows, tokens, steps)
    with watched() as training:
        records = list(trainer.run())
    found = {
        "loaded_bytes": after - before, "loading_peak_bytes": loading[0] - before,
        "peak_bytes": training[0] - before, "seconds": sorted(one.seconds for one in records)[len(records) // 2],
        "losses": [one.loss for one in records], "logits": digest,
    }  # fmt: skip
    (Path(out) / f"process-{world.rank}.json").write_text(json.dumps(found))
    world.barrier()


def imported(sharded: bool) -> None:
    """What loading a model imports, before memory is looked at."""
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rankwise.base.sharding import mesh_of

    assert AutoModelForCausalLM and AutoTokenizer
    if sharded:
        mesh_of("cpu")


def trainer_of(module: Any, world: Any, rows: int, tokens: int, steps: int) -> Any:
    from dataclasses import replace

    import torch

    from rankwise.config.adapters import LoraConfig
    from rankwise.config.training import TrainingConfig
    from rankwise.forward.reference import random_documents
    from rankwise.methods.inject import inject
    from rankwise.methods.lora import TrainableLoRA
    from rankwise.objectives.registry import objective_named
    from rankwise.rows.encoded.batches import Batches
    from rankwise.rows.encoded.dealing import share_of
    from rankwise.training.backend import Eager
    from rankwise.training.trainer import Trainer
    from rankwise.training.workload import Workload

    trainable = TrainableLoRA(inject(module, LoraConfig(rank=8)))
    config = TrainingConfig(steps=steps, learning_rate=1e-4, batch_size=rows, max_batch_tokens=tokens)
    backend = Eager(Workload(module, trainable, objective_named("causal-lm"), longest=tokens))
    documents = random_documents(1000, [tokens - 1] * rows * steps, torch.Generator().manual_seed(0))
    batches = Batches.of(documents, config, backend.layout)
    if world.is_several:
        batches = replace(batches, share=lambda given: share_of(given, world.rank, world.size))
    return Trainer(trainable, batches, config, backend, world=world)


def digest_of(values: Any) -> str:
    from hashlib import sha256

    return sha256(values.numpy().tobytes()).hexdigest()


def private_bytes() -> int:
    """Memory that is no page of a file, and so is this process's alone."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


@contextmanager
def watched() -> Iterator[list[int]]:
    """The most that `private_bytes` was inside."""
    most, over = [private_bytes()], threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            most[0] = max(most[0], private_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield most
    finally:
        over.set()
        watcher.join()
        most[0] = max(most[0], private_bytes())


def show(found: dict[str, Any]) -> None:
    for name, made in found["cells"].items():
        for rank, one in enumerate(made["processes"], start=1):
            print(
                f"{name}, process {rank}: {one['loaded_bytes'] / 1e6:,.0f} MB loaded (at most "
                f"{one['loading_peak_bytes'] / 1e6:,.0f} while it was), peak {one['peak_bytes'] / 1e6:,.0f} MB in "
                f"training, {one['seconds']:.2f} s a step"
            )
        print(f"{name}: {found['share_of_one'][name]:.3f} of one process's weights")
    print(f"logits equal, bit for bit: {found['logits_equal']}")


if __name__ == "__main__":
    if "SHARDED_CELL" in os.environ:
        measure(**json.loads(os.environ["SHARDED_CELL"]))
    else:
        main()
