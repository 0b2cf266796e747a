"""Stop 10: a TrainState into a folder and back; a restored run goes on bit for bit (on the same machine and versions).

    state.safetensors   allocator.<name>, optimizer.<number>.<name>, random.<device>
    state.json          the step, what learns in facts (`allocator`), size and hash of the tensors, and a hash of itself

The rows of each step and the learning rate are functions of the step, so these need no state. Nothing is pickled, and
what is damaged, of other adapters or not finite is refused. A snapshot is what was learned alone, in the same files: to
be kept, and not to go on from.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankwise.errors import RunError, some
from rankwise.methods.state import TrainableState
from rankwise.system.files import published, sha256_of, write_json
from rankwise.training.finite import check_finite, not_finite
from rankwise.training.rng import random_states, set_random_states
from rankwise.training.state import TrainState

TENSORS, FACTS = "state.safetensors", "state.json"
FORMAT = 1
LARGEST_FACTS = 10_000_000


def size_of(state: TrainState) -> int:
    """The bytes of a checkpoint, at most: what learns, and the optimizer's two averages."""
    moments = 2 * sum(parameter.nbytes for parameter in state.parameters)
    return moments + sum(value.nbytes for value in state.trainable.state_dict().tensors.values())


def save(state: TrainState, folder: Path) -> None:
    """Write `folder`, whole or not at all."""
    random = {f"random.{device}": value for device, value in random_states(state.device).items()}
    _write(state, folder, _moments(state) | random)


def restore(state: TrainState, folder: Path) -> None:
    """Into a state that has made no step, over freshly injected adapters."""
    assert state.step == 0, "a checkpoint is restored into a fresh state"
    facts, tensors = _read(state, folder)
    _load_trainable(state, facts, tensors)
    _load_moments(state, _under("optimizer", tensors))
    state.step = facts["step"]
    set_random_states(state.device, _under("random", tensors))


def save_snapshot(state: TrainState, folder: Path) -> None:
    _write(state, folder, {})


def check_snapshot(state: TrainState, folder: Path) -> None:
    """Whether it is there and whole."""
    _read(state, folder)


def load_snapshot(state: TrainState, folder: Path) -> None:
    """What was learned until then, over what was learned since. Its ranks must have been final."""
    facts, tensors = _read(state, folder)
    _load_trainable(state, facts, tensors)


def _write(state: TrainState, folder: Path, beside: dict[str, Tensor]) -> None:
    learned = state.trainable.state_dict()
    tensors = {f"allocator.{name}": value for name, value in learned.tensors.items()} | beside
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    check_finite(tensors, state)  # the checkpoint before this one is worth more
    with published(folder) as temporary:
        save_file(tensors, temporary / TENSORS)
        facts = {
            "format": FORMAT,
            "step": state.step,
            "steps": state.steps,
            "allocator": dict(learned.facts),
            "tensors": {"bytes": (temporary / TENSORS).stat().st_size, "sha256": sha256_of(temporary / TENSORS)},
        }
        write_json(temporary / FACTS, facts | {"sha256": _hash(facts)})


def _read(state: TrainState, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    facts = _read_facts(folder / FACTS)
    if facts["steps"] != state.steps:
        raise RunError(f"{folder} is a checkpoint of a run of {facts['steps']} steps, but this run has {state.steps}.")
    return facts, _read_tensors(folder / TENSORS, facts["tensors"])


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
        known.setdefault(int(number), {})[name] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": known, "param_groups": groups})
    for number in known:  # who once had a gradient has one of zeros between steps, and moves by its moments
        if parameters[number].grad is None:
            parameters[number].grad = torch.zeros_like(parameters[number])


def _read_facts(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > LARGEST_FACTS:
            raise _damaged(file, "it is far too large")
        facts = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise _damaged(file, "it is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, RunError):
            raise
        raise _damaged(file, type(error).__name__) from None
    if not isinstance(facts, dict) or facts.pop("sha256", None) != _hash(facts):
        raise _damaged(file, "its content does not match its hash")
    if facts["format"] != FORMAT:
        raise RunError(f"{file} has format {facts['format']}, but this version of rankwise reads format {FORMAT}.")
    return facts


def _read_tensors(file: Path, written: dict[str, Any]) -> dict[str, Tensor]:
    try:
        if file.stat().st_size != written["bytes"]:
            raise _damaged(file, f"it has {file.stat().st_size:,} of {written['bytes']:,} bytes")
        if sha256_of(file) != written["sha256"]:
            raise _damaged(file, "its content does not match the recorded hash")
        tensors = load_file(file)
    except FileNotFoundError:
        raise _damaged(file, "it is missing") from None
    except (OSError, SafetensorError) as error:
        raise _damaged(file, str(error)) from None
    spoiled = not_finite(tensors)
    if spoiled:
        raise _damaged(file, f"NaN or infinity in {some(spoiled, 3)}")
    return tensors


def _damaged(file: Path, why: str) -> RunError:
    return RunError(f"{file} is damaged ({why}), so the run cannot be resumed. Use --restart to start it again.")


def _under(head: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{head}."): value for name, value in tensors.items() if name.startswith(f"{head}.")}


def _hash(facts: dict[str, Any]) -> str:
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
