"""The base model that a run began with: found again, and known to be the same."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor

from rankwise.config.models import ModelConfig
from rankwise.errors import RunError
from rankwise.models.loaded import LoadedModel
from rankwise.models.loading import load
from rankwise.runs.directory import RunDirectory
from rankwise.runs.manifest import BaseModelFacts
from rankwise.runs.records import Callback


def base_of(run: RunDirectory, trust_code: str | None) -> ModelConfig:
    """A run's base model as it is loaded here: the device is this machine's own affair, and a run, which may be
    somebody else's, cannot say whose code to trust."""
    spec = run.experiment().base
    return spec.model_copy(update={"name": _base_name(run, spec.name), "device": "auto", "trust_code": trust_code})


def check_base(found: LoadedModel, trained_on: BaseModelFacts, called: str, use: str, *, force: bool) -> None:
    """`called` is what was trained, in a sentence, and `use` what the base is wanted for."""
    if found.facts.fingerprint != trained_on.fingerprint and not force:
        raise RunError(
            f"{called} was trained on {trained_on.name} from {trained_on.source} ({trained_on.fingerprint}); "
            f"the base model found now, from {found.facts.source}, has other weights ({found.facts.fingerprint}). "
            f"Use --force-base to {use} anyway."
        )


def base_weights(
    spec: ModelConfig, trained_on: BaseModelFacts, called: str, callback: Callback, *, force: bool = False
) -> Mapping[str, Tensor]:
    """By their names in the model, on the processor; a weight that two layers share is there once."""
    found = load(spec.model_copy(update={"device": "cpu"}), callback)
    check_base(found, trained_on, called, "ask it", force=force)
    return {name: weight.detach() for name, weight in found.module.named_parameters()}


def _base_name(run: RunDirectory, name: str) -> str:
    """A relative path was written from the folder that holds `runs/`, which may not be the one we are in."""
    beside_runs = os.path.join(run.folder.absolute().parent.parent, name)  # noqa: PTH118  the name may be no path
    return beside_runs if not os.path.exists(name) and os.path.exists(beside_runs) else name  # noqa: PTH110
