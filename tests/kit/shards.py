"""What processes with a split base do in tests: jobs for `worlds.together`, and mistakes that the laws must notice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM

from kit.worlds import CASES, learn, nothing, patched
from rankwise.base import sharding
from rankwise.base.kind import CAUSAL_LM
from rankwise.base.sharding import load_sharded
from rankwise.base.split import gathered, is_split, local_part
from rankwise.errors import TrainingError
from rankwise.training import world as processes
from rankwise.training.world import World, join

IDS = torch.tensor([[1, 5, 9, 60, 33, 7, 2], [4, 4, 8, 15, 16, 23, 42]])
CPU = torch.device("cpu")


def whole_model(folder: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def write_logits(folder: Path, given: Any) -> None:
    """In each process: the logits of the named models, twice, and the shape of its part of each parameter; each with
    a mistake if one is named."""
    world = join()
    for name, mistake in given:
        with PLANTED[mistake](world) if mistake else nothing():
            model, report = load_sharded(folder / name, CAUSAL_LM, torch.float64, CPU)
            assert not report["missing_keys"]
            with torch.no_grad():
                logits = [model(input_ids=IDS).logits for _ in range(2)]
            split = {key: one for key, one in model.named_parameters() if is_split(one)}
            assert split.keys() == dict(model.named_parameters()).keys()
            shares = {key: torch.tensor(local_part(one).shape) for key, one in split.items()}
            tensors = {"first": logits[0], "second": logits[1], **shares}
            save_file(tensors, folder / f"{name}-{mistake}-{world.rank}.safetensors")


def learn_sharded(folder: Path, given: Any) -> None:
    """In each process: the named cases over a split base, each with a mistake if one is named. What is noticed at once
    leaves no result."""
    world = join()
    for name, mistake in given:
        with PLANTED[mistake](world) if mistake else nothing():
            try:
                learned = learn(replace(CASES[name], base=folder / "llama"), world, folder / name)
            except TrainingError:
                continue
            save_file(
                {key: gathered(one) for key, one in learned.weights.items()},
                folder / f"{name} {mistake}-{world.rank}.safetensors",
            )
            facts = {key: value for key, value in asdict(learned).items() if key != "weights"}
            (folder / f"{name} {mistake}-{world.rank}.json").write_text(json.dumps(facts))


def rows_of_the_first(world: World) -> Any:
    """Every process reads the rows of the first."""
    return patched(sharding, "rows_of", lambda real: lambda rows, rank, size: (0, real(rows, 0, size)[1]))


@contextmanager
def no_buffers(world: World) -> Iterator[None]:
    """Buffers are left without values."""

    def emptied(real: Any) -> Any:
        def empty(module: nn.Module, device: torch.device) -> None:
            real(module, device)
            for value in module.buffers():
                value.zero_()

        return empty

    with patched(sharding, "_without_memory", emptied):
        yield


def summed_twice(world: World) -> Any:
    def twice(real: Any) -> Any:
        def sum_them(self: World, parameters: Any) -> None:
            real(self, parameters)
            real(self, parameters)

        return sum_them

    return patched(World, "sum_gradients", twice)


def not_summed(world: World) -> Any:
    return patched(World, "sum_gradients", lambda real: lambda self, parameters: None)


def idle_rows_learn(world: World) -> Any:
    """Rows that fill up the passes are learned from."""
    learned = replace(processes.NOTHING_PREDICTED, loss_mask=(True, True))
    return patched(processes, "NOTHING_PREDICTED", lambda real: learned)


PLANTED: dict[str, Callable[[World], Any]] = {
    "rows of the first": rows_of_the_first, "no buffers": no_buffers, "summed twice": summed_twice,
    "not summed": not_summed, "idle rows learn": idle_rows_learn,
}  # fmt: skip
