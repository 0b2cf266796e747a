"""Two rivals of AdaLoRA that rankwise does not have, made of its parts for lab/allocation.py.

    adalora-eva   rows of Q begin as the leading directions of each layer's inputs (adapters/eva.py), with their usual
                  length
    gates         no importance: an L1 penalty draws every strength towards zero, and the triplets with the largest
                  strengths are kept (the idea of L1RA)

The penalty takes half the learning rate off each strength's size in each step, after Adam has moved it. So a strength
that the rows steadily pull up grows by at most half a rate, one that they leave alone falls by as much, and one that
they pull down falls by up to one and a half. Pruning has AdaLoRA's schedule and budget.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from rankwise.adapters.adalora import LENGTH, AdaLoRA, FusedAdaLoRA
from rankwise.adapters.importance import Importance
from rankwise.adapters.set import AdapterSet
from rankwise.adapters.targets import Choice
from rankwise.adapters.triplets import Triplets
from rankwise.base.loaded import LoadedModel
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.methods.adalora import AdaLoraMethod, TrainableAdaLora
from rankwise.methods.lora import eva_start
from rankwise.methods.method import Setup
from rankwise.runs.records import RankRecord

SHARE = 0.5
"""Of the learning rate, by which a strength shrinks in a step."""
MOST = 8
"""Directions of a layer's inputs that are looked for."""
attach = AdaLoraMethod.attach_to


class Largest(Importance):
    def scores(self, triplets: Triplets) -> Tensor:
        return triplets.strengths.detach().abs() * triplets.costs  # they are divided by their costs again


class Gated(TrainableAdaLora):
    def __init__(self, adapters: AdapterSet, spec: AdaLoraConfig, steps: int) -> None:
        super().__init__(adapters, spec, steps)
        self.importance = Largest.of(self.triplets, self.config.beta1, self.config.beta2)

    @torch.no_grad()
    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> RankRecord | None:
        if not self.final:
            sizes = self.triplets.strengths.abs()
            signs, groups = self.triplets.strengths.sign(), optimizer.param_groups
            (rate,) = (group["lr"] for group in groups if group["params"][0] is self.triplets.strengths)
            self.triplets.strengths.copy_(signs * (sizes - SHARE * rate).clamp_min(0.0))
        return super().after_step(step, optimizer)


def rival(method: str) -> AbstractContextManager[Any]:
    """Inside, the method adalora is the rival."""
    if method == "gates":
        return patch("rankwise.methods.adalora.TrainableAdaLora", Gated)
    if method == "adalora-eva":
        return patch.object(AdaLoraMethod, "attach_to", from_inputs)
    return nullcontext()


def from_inputs(self: AdaLoraMethod, adapters: AdapterSet, model: LoadedModel, setup: Setup) -> TrainableAdaLora:
    choices, _ = eva_start(LoraConfig(start="eva", rank=MOST, eva_rho=1.0), model, setup)
    tuned = attach(self, adapters, model, setup)
    begin_with(tuned, choices)
    return tuned


@torch.no_grad()
def begin_with(tuned: TrainableAdaLora, choices: list[Choice]) -> None:
    """Parts of one layer have the same directions. A direction that no input has stays as it was."""
    directions = {choice.path: choice.A for choice in choices}
    for path, adapter in tuned.adapters.adapters(tuned.name).items():
        rows = directions.get(path)
        if rows is None:
            continue
        assert isinstance(adapter, AdaLoRA | FusedAdaLoRA), "it is attached by adalora"
        for part in adapter.parts:
            count = min(part.rank, len(rows))
            part.Q[:count].copy_(torch.nn.functional.normalize(rows[:count], dim=1) * LENGTH)
