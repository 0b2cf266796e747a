"""Train a result again, from what it says of its training and from the rows, and compare the weights.

With the same versions, processor and threads the bytes are the same. Elsewhere sums round otherwise, and what is said
is the distance: the largest difference of two numbers, and the norm of all differences as a share of the weights'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file

from rankwise.base.sources import find
from rankwise.commands.provenance.recorded import SAME_ROWS, Recorded
from rankwise.commands.train import train
from rankwise.config.experiment import Experiment, named_after
from rankwise.errors import ResultError
from rankwise.methods.artifact import recorded_training
from rankwise.runs.integrity import COPY, check_result
from rankwise.runs.records import Callback, silent
from rankwise.system.files import sha256_of
from rankwise.system.processor import usable_cores
from rankwise.training.resume import differences


@dataclass(frozen=True)
class Rebuilt:
    folder: Path
    run: str
    status: Literal["same bytes", "other machine", "different"]
    differing: tuple[str, ...]
    """Files of weights that are not the same bytes."""
    machine: tuple[str, ...]
    """What differs between here and where it was trained."""
    distance: tuple[float, float] | None
    """The largest difference, and the share of all; None where the bytes are the same, or the folder holds the weights
    in another form than training wrote them."""


def rebuild(
    name: str, data: Sequence[str], base_model: str | None = None, run: str | None = None, callback: Callback = silent
) -> Rebuilt:
    """ResultError where the base or a row is not what it was."""
    recorded = Recorded.of(name)
    if recorded.run is not None:
        check_result(recorded.run, callback, way_out=COPY)
    folder, facts, settings = recorded.folder, recorded.facts, recorded.settings(data)
    training = settings["training"]
    rate = facts.learning_rate if training["learning_rate"] == "tune" else training["learning_rate"]
    settings["training"] = training | {"backend": facts.backend, "learning_rate": rate}
    settings["model"] |= recorded.base_named(base_model)
    run = run or f"{named_after(Path(name).resolve().name, 'result')}-rebuilt"
    experiment = Experiment(**settings | {"run": run})
    rows = [line for line in recorded.row_changes(experiment.data) if not line.endswith(SAME_ROWS)]
    if changes := [*recorded.base_change(find(experiment.base, callback)), *rows]:
        raise ResultError("\n".join([f"{folder} was trained on something else, so nothing was trained:", *changes]))
    if facts.threads is not None and 1 <= facts.threads <= usable_cores():
        torch.set_num_threads(facts.threads)
    trained = train(experiment, callback=callback)
    now = recorded_training(trained.result)
    assert now is not None, "it was just written"
    differing = tuple(file for file in facts.weights if now.weights.get(file) != facts.weights[file])
    machine = tuple(differences((facts.versions, facts.machine), (now.versions, now.machine)))
    status = "same bytes" if not differing else "other machine" if machine else "different"
    whole = all((folder / file).is_file() and sha256_of(folder / file) == facts.weights[file] for file in differing)
    distance = _distance(folder, trained.result, differing) if differing and whole else None
    return Rebuilt(folder, run, status, differing, machine, distance)


def _distance(then: Path, now: Path, files: Sequence[str]) -> tuple[float, float] | None:
    """None where the tensors have other names or shapes."""
    largest = change = size = 0.0
    for file in files:
        old, new = load_file(then / file), load_file(now / file)
        if {key: value.shape for key, value in old.items()} != {key: value.shape for key, value in new.items()}:
            return None
        for key, value in old.items():
            difference = new[key].double() - value.double()
            largest = max(largest, difference.abs().max().item())
            change += difference.square().sum().item()
            size += value.double().square().sum().item()
    return largest, sqrt(change / size) if size else 0.0
