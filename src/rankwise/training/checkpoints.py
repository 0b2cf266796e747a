"""Stop 10: a TrainState into a folder and back; a restored run goes on bit for bit (on the same machine and versions).

    state.safetensors   allocator.<name>, optimizer.<number>.<name>, random.<device>
    state.json          the step, what learns in facts (`allocator`), and the seal (runs/own_files.py)
    …                   copies of the run's own files, which the run gives along

The rows of each step and the learning rate are functions of the step, so these need no state. Nothing is pickled, and
what is damaged, of other adapters or not finite is refused. A snapshot is what was learned alone, in the same files: to
be kept, and not to go on from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankwise.base.sharding import write_gathered
from rankwise.base.split import split_as
from rankwise.errors import RunError, some
from rankwise.methods.trainable import TrainableState
from rankwise.runs.own_files import TENSORS, DamagedStep, check_file, read_facts, seal
from rankwise.system.files import published
from rankwise.training.state import TrainState, check_finite, not_finite, random_states, set_random_states


def size_of(state: TrainState) -> int:
    """The bytes of a checkpoint, at most: what learns, and the optimizer's two averages."""
    moments = 2 * sum(parameter.nbytes for parameter in state.parameters)
    return moments + sum(value.nbytes for value in state.trainable.state_dict().tensors.values())


def save(state: TrainState, folder: Path | None, copies: Mapping[str, bytes] | None = None) -> None:
    """Write `folder`, whole or not at all, with `copies` of other files by their names. Where what learns is split,
    every process calls this, and those without a folder give their part."""
    random = {f"random.{device}": value for device, value in random_states(state.device).items()}
    _write(state, folder, _moments(state) | random, copies or {})


def restore(state: TrainState, folder: Path) -> None:
    """Into a state that has made no step, over freshly injected adapters."""
    assert state.step == 0, "a checkpoint is restored into a fresh state"
    facts, tensors = _read(state, folder)
    _load_trainable(state, facts, tensors)
    _load_moments(state, _under("optimizer", tensors))
    state.step = facts["step"]
    set_random_states(state.device, _under("random", tensors))


def save_snapshot(state: TrainState, folder: Path | None) -> None:
    _write(state, folder, {}, {})


def check_snapshot(state: TrainState, folder: Path) -> None:
    """Whether it is there and whole."""
    _read(state, folder)


def load_snapshot(state: TrainState, folder: Path) -> None:
    """What was learned until then, over what was learned since. Its ranks must have been final."""
    facts, tensors = _read(state, folder)
    _load_trainable(state, facts, tensors)


def _write(state: TrainState, folder: Path | None, extra: dict[str, Tensor], copies: Mapping[str, bytes]) -> None:
    learned = state.trainable.state_dict()
    tensors = {f"allocator.{name}": value.detach() for name, value in learned.tensors.items()} | extra
    check_finite(tensors, state)  # the checkpoint before this one is worth more
    if folder is None:
        write_gathered(None, tensors)
        return
    with published(folder) as temporary:
        if state.is_split:
            write_gathered(temporary / TENSORS, tensors)
        else:
            save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, temporary / TENSORS)
        for name, content in copies.items():
            (temporary / name).write_bytes(content)
        seal(temporary, {"step": state.step, "steps": state.steps, "allocator": dict(learned.facts)})


def _read(state: TrainState, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    facts = read_facts(folder)
    if facts["steps"] != state.steps:
        raise RunError(f"{folder} is a checkpoint of a run of {facts['steps']} steps, but this run has {state.steps}.")
    return facts, _read_tensors(folder, facts)


def _load_trainable(state: TrainState, facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    saved = TrainableState(_under("allocator", tensors), facts["allocator"])
    state.trainable.load_state_dict(saved, state.optimizer)


def _moments(state: TrainState) -> dict[str, Tensor]:
    """What the optimizer knows of each parameter, by the parameter's number."""
    return {
        f"optimizer.{number}.{name}": value
        for number, parameter in enumerate(state.parameters)
        for name, value in state.optimizer.state.get(parameter, {}).items()
    }


def _load_moments(state: TrainState, saved: dict[str, Tensor]) -> None:
    parameters = state.parameters
    known: dict[int, dict[str, Tensor]] = {}
    for key, value in saved.items():
        number, _, name = key.partition(".")
        if int(number) >= len(parameters) or value.shape not in ((), parameters[int(number)].shape):
            raise RunError(
                f"the checkpoint does not fit these adapters: optimizer.{key} is unknown or has another shape."
            )
        known.setdefault(int(number), {})[name] = split_as(value, parameters[int(number)])
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": known, "param_groups": groups})
    for number in known:  # who once had a gradient has one of zeros between steps, and moves by its moments
        if parameters[number].grad is None:
            parameters[number].grad = torch.zeros_like(parameters[number])


def _read_tensors(folder: Path, facts: dict[str, Any]) -> dict[str, Tensor]:
    check_file(folder, TENSORS, facts)
    try:
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise DamagedStep(folder / TENSORS, str(error)) from None
    spoiled = not_finite(tensors)
    if spoiled:
        raise DamagedStep(folder / TENSORS, f"NaN or infinity in {some(spoiled, 3)}")
    return tensors


def _under(head: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{head}."): value for name, value in tensors.items() if name.startswith(f"{head}.")}
