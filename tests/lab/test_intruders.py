"""Damped intruder dimensions change a model as PEFT's adapter without them does, and never its base."""

from __future__ import annotations

import copy

import intruders
import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from peft.tuners.lora.intruders import reduce_intruder_dimension
from torch import nn

from rankwise.config.adapters import LoraConfig
from rankwise.methods.inject import inject

WIDTH = 24


@pytest.fixture
def adapted():
    """A layer with large new directions and one whose small change adds none, of full rank, as PEFT's will be."""
    torch.manual_seed(0)
    base = nn.ModuleDict({"new": nn.Linear(WIDTH, WIDTH), "same": nn.Linear(WIDTH, WIDTH)})
    plain = copy.deepcopy(base)
    adapters = inject(base, LoraConfig(rank=WIDTH, alpha=WIDTH, targets=["new", "same"]))
    with torch.no_grad():
        for path, size in (("new", 1.0), ("same", 1e-4)):
            adapters.adapters()[path].B.copy_(size * torch.randn(WIDTH, WIDTH))
    return plain, adapters


@pytest.mark.parametrize("factor", [0.75, 0.5, 0.0])
def test_the_damped_model_computes_what_pefts_does(adapted, factor):
    plain, adapters = adapted
    theirs = get_peft_model(plain, PeftConfig(r=WIDTH, lora_alpha=WIDTH, target_modules=["new", "same"]))
    for path, ours in adapters.adapters().items():
        layer = theirs.base_model.model[path]
        layer.lora_A["default"].weight.data.copy_(ours.A)
        layer.lora_B["default"].weight.data.copy_(ours.B)
    reduce_intruder_dimension(theirs, mitigation_lambda=factor, logging_sink=None)
    directions = intruders.intruders_of(adapters)
    assert len(directions["new"][1]) > 0 and len(directions["same"][1]) == 0
    x = torch.randn(5, WIDTH)
    before = adapters.model["new"](x)
    for path in ("new", "same"):
        with torch.no_grad(), intruders.damped(adapters, directions, factor):
            assert torch.allclose(adapters.model[path](x), theirs.base_model.model[path](x), atol=1e-4)
    assert torch.equal(adapters.model["new"](x), before)


def test_the_base_is_the_base_inside(adapted):
    plain, adapters = adapted
    x = torch.randn(5, WIDTH)
    with intruders.damped(adapters, intruders.intruders_of(adapters), 0.0), adapters.base():
        assert torch.equal(adapters.model["new"](x), plain["new"](x))
