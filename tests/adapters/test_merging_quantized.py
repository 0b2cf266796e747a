"""An adapter over quantised weights is merged into their numbers, and nothing is written into what is packed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kit.adapted_models import unsettle
from kit.quantized_models import quantize, wide_model
from rankwise.adapters.base_layers import oriented
from rankwise.adapters.set import merge
from rankwise.config.adapters import LoraConfig
from rankwise.kernels.quantized.tensor import in_full, is_quantized, unpack_weights
from rankwise.methods.inject import inject

IDS = torch.arange(48).reshape(2, 24) % 96


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def packed_in(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in model.named_parameters() if is_quantized(weight)}


@pytest.mark.parametrize("format", ["nf4", "int8"])
@pytest.mark.parametrize("dora", [False, True])
def test_the_sum_is_rounded_once_from_float32(format, dora):
    model = quantize(wide_model().bfloat16(), format)
    adapters = inject(model, LoraConfig(rank=3, targets=("q_proj", "down_proj"), dora=dora))
    unsettle(adapters, 1)
    sums = {}
    for path, adapter in adapters.adapters().items():
        weight = adapters.base_layer(path).weight
        numbers, factor = weight.format.unpack(weight.parts, weight.stored_shape, torch.float32)
        exact = numbers if factor is None else numbers * factor[:, None]
        if dora:
            change = adapter.magnitude[:, None] * (turned := exact + adapter.scale * adapter.B @ adapter.A)
            sums[path] = (change / turned.norm(dim=1, keepdim=True)).detach()
        else:
            sums[path] = exact + oriented(adapters.base_layer(path), adapter.delta()).detach()
    merged = merge(adapters)
    for path, exact in sums.items():
        weight = merged.get_submodule(path).weight
        assert type(weight) is nn.Parameter and weight.dtype == torch.bfloat16
        if dora:  # computed by other roads, so a number may lie at the border of two
            assert ((weight - exact).abs() <= exact.abs() * 2**-8 * 1.001 + 1e-9).all(), "half a step and no more"
        else:
            assert torch.equal(weight, exact.bfloat16())
    left = packed_in(merged)
    assert len(left) == 10 and not any("q_proj" in name or "down_proj" in name for name in left)


def test_weights_that_are_left_are_unpacked_on_demand_and_stay_shared():
    model = quantize(wide_model(), "nf4")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    before = logits(model)
    names = unpack_weights(model)
    assert len(names) == 14 and not packed_in(model)
    assert model.model.layers[0].mlp.up_proj.weight is model.model.layers[1].mlp.up_proj.weight
    assert (logits(model) - before).abs().max() <= 1e-6 * before.abs().max()


def test_a_quantised_weight_that_is_shared_is_parted_before_one_of_two_layers_changes():
    model = quantize(wide_model(), "int8")
    first, second = (layer.mlp.up_proj for layer in model.model.layers)
    second.weight = first.weight
    kept = in_full(second.weight)
    adapters = inject(model, LoraConfig(rank=2, targets=("layers.0.mlp.up_proj",)))
    unsettle(adapters, 1)
    expected = logits(model)
    merge(adapters)
    assert torch.equal(in_full(second.weight), kept) and not torch.equal(first.weight, kept)
    assert (logits(model) - expected).abs().max() <= 1e-5 * expected.abs().max()
