"""The base model of a training: what is recorded of it, and how it is recognised when it is loaded again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from torch import Tensor

from rankwise.config.models import ModelConfig
from rankwise.data.licences import find_licence
from rankwise.errors import RunError
from rankwise.models.loaded import LoadedModel
from rankwise.models.starters import STARTERS
from rankwise.runs.manifest import BaseModelFacts
from rankwise.runs.records import Callback
from rankwise.runs.snapshot import RunSnapshot

BASE_FACTS = "base_model.json"
"""Beside an adapter that rankwise wrote: its base model's name, source and fingerprint."""


class BaseFacts(BaseModelFacts):
    """What lies in that file."""

    licence: str = "unknown"


def base_facts(model: LoadedModel) -> BaseFacts:
    """As they are written beside an adapter, with the licence of the base where it is stated."""
    starter = next((one.licence for one in STARTERS.values() if one.hub_id == model.source.name), None)
    licence = starter or find_licence(model.source.folder)
    return BaseFacts(**model.facts.model_dump(), licence=licence)


def base_of(run: RunSnapshot, trust_code: str | None) -> ModelConfig:
    """The base model of a run, as it is loaded here: the device is this machine's own affair, and a run, which may be
    somebody else's, cannot decide whose code to trust."""
    spec = run.experiment.base
    changes = {"name": _base_name(run, spec.name), "device": "auto", "trust_code": trust_code, "sharded": False}
    return spec.model_copy(update=changes)


def check_base(model: LoadedModel, trained_on: BaseModelFacts, described: str, use: str, *, force: bool) -> None:
    """RunError where this is not the base that was trained on. `described` is what was trained, and `use` what the base
    is needed for, both for the message."""
    if model.facts.fingerprint != trained_on.fingerprint and not force:
        found = f"the base model found now, from {model.facts.source},"
        told = trained_on.refusal(described, found, *model.source.fingerprints)
        raise RunError(f"{told} Use --force-base to {use} anyway.")


def base_weights(
    load: Callable[[ModelConfig, Callback], LoadedModel], spec: ModelConfig, trained_on: BaseModelFacts,
    described: str, callback: Callback, *, force: bool = False,
) -> Mapping[str, Tensor]:  # fmt: skip
    """By their names in the model, on the processor; a weight that two layers share is there once. `load` is the
    objective's."""
    model = load(spec.model_copy(update={"device": "cpu", "sharded": False}), callback)
    check_base(model, trained_on, described, "use it", force=force)
    return {name: weight.detach() for name, weight in model.module.named_parameters()}


def _base_name(run: RunSnapshot, name: str) -> str:
    """A relative path was written from the folder that holds `runs/`, which may not be the one we are in."""
    beside_runs = os.path.join(run.folder.absolute().parent.parent, name)  # noqa: PTH118  the name may be no path
    return beside_runs if not os.path.exists(name) and os.path.exists(beside_runs) else name  # noqa: PTH110
