"""Where adapters and a whole model that learns part ways: what is decided between steps, written at the end, and read.

Everything else, training itself above all, treats both alike (adapters/tuned.py).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from rankwise.adapters.allocation import Allocator, FixedRanks, RankAllocator
from rankwise.adapters.formats.peft import lay_peft, write_peft
from rankwise.adapters.full import AllWeights, WholeModel
from rankwise.adapters.set import AdapterSet
from rankwise.adapters.tuned import Tuned
from rankwise.config.adapters import AdaLoraConfig, FullConfig, LoraConfig
from rankwise.config.experiment import Experiment
from rankwise.config.models import ModelConfig
from rankwise.methods.adapter_folder import base_recorded, filled_by_training
from rankwise.methods.base_model import base_weights, check_base
from rankwise.methods.model_card import CardFacts
from rankwise.methods.opening import BASE_FACTS, AdapterBase, Opened
from rankwise.models.loaded import LoadedModel
from rankwise.models.saving import save
from rankwise.models.sources import find
from rankwise.runs.data_report import DATA_REPORT
from rankwise.runs.directory import RunDirectory
from rankwise.runs.records import Callback, WarningMessage, silent
from rankwise.system.files import published, write_json


def lent(model: LoadedModel, experiment: Experiment) -> LoadedModel:
    """A model that the caller holds too. Adapters leave its weights as they are; what changes them gets a copy."""
    return replace(model, module=deepcopy(model.module)) if isinstance(experiment.adapter, FullConfig) else model


def whole(model: LoadedModel, run_name: str, callback: Callback) -> WholeModel:
    """About to learn."""
    return WholeModel(model.module, partial(base_weights, model.spec, model.facts, f'run "{run_name}"', callback))


def allocator_of(tuned: Tuned, spec: LoraConfig | AdaLoraConfig | FullConfig, steps: int) -> Allocator:
    if isinstance(tuned, WholeModel):
        return AllWeights(tuned)
    assert isinstance(tuned, AdapterSet) and not isinstance(spec, FullConfig), "begin has made it by the same spec"
    if isinstance(spec, AdaLoraConfig):
        return RankAllocator(tuned, spec, steps)
    return FixedRanks(tuned, b_rate=spec.b_rate)


def write(
    tuned: Tuned, model: LoadedModel, run: RunDirectory, revision: str | None, data_report: dict[str, Any],
    card: Callable[[AdapterBase, list[int]], CardFacts],
) -> None:  # fmt: skip
    """What was learned, as `run.result`, whole or not at all."""
    if isinstance(tuned, AdapterSet):
        base = base_recorded(model)
        ranks = [adapter.rank for adapter in tuned.adapters().values() if adapter.rank]
        write_peft(
            tuned, run.result, base_model=model.source.name_for_peft, revision=revision,
            beside={DATA_REPORT: data_report, BASE_FACTS: base.model_dump(mode="json")},
            fill=filled_by_training(model, card(base, ranks)),
        )  # fmt: skip
        return
    with published(run.result) as temporary:
        save(model, temporary, torch.float32)
        write_json(temporary / DATA_REPORT, data_report)


def named(tuned: Tuned, model: LoadedModel, run: RunDirectory) -> LoadedModel:
    """A model whose own weights have learned is no longer the one it was loaded as, but the one that was written."""
    if isinstance(tuned, AdapterSet):
        return model
    spec = model.spec.model_copy(update={"name": str(run.result), "revision": None})
    return replace(model, spec=spec, source=find(spec, silent))


def model_of(opened: Opened) -> ModelConfig:
    """What is loaded to ask it: its base, for the adapter to be laid over, or the whole model that was trained."""
    return opened.base if opened.is_adapter else ModelConfig(name=str(opened.result), dtype="float32")


def tuned_of(opened: Opened, model: LoadedModel, callback: Callback, *, force_base: bool) -> Tuned:
    """With the model that `model_of` names. The base of a whole model is not looked for until somebody asks it."""
    base, trained_on = opened.base_named, opened.trained_on
    if not opened.is_adapter:
        assert base is not None and trained_on is not None, "a run records its base"
        return WholeModel(
            model.module, partial(base_weights, base, trained_on, opened.called, callback, force=force_base)
        )
    if trained_on is not None:
        check_base(model, trained_on, opened.called, "apply the adapter", force=force_base)
    else:
        callback(WarningMessage(
            f"{opened.folder} does not record its base model's weights, so it is unknown whether {model.source.name} "
            f"from {model.source.where} is the right base model"
        ))  # fmt: skip
    return lay_peft(model.module, opened.result)
