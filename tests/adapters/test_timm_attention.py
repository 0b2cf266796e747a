"""Layers of timm's attention whose weight is read and that are not called, unless timm's own switch is on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from torch import Tensor, nn

from rankwise.adapters.adalora import FusedAdaLoRA
from rankwise.adapters.base_layers import split_of
from rankwise.adapters.set import merge
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.methods.inject import add_adapter, inject

MODELS: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 32},
    "swinv2_tiny_window8_256": {
        "img_size": 32,
        "embed_dim": 16,
        "depths": (1, 1),
        "num_heads": (2, 2),
        "window_size": 4,
    },
    "eva02_tiny_patch14_224": {"depth": 1, "img_size": 28, "embed_dim": 24, "num_heads": 2},
    "vit_tiny_patch16_224": {"depth": 1, "img_size": 32, "embed_dim": 24, "num_heads": 2},
}
NOTES = {
    "beit_base_patch16_224": ["PEFT leaves 1"], "swinv2_tiny_window8_256": ["PEFT leaves 2"],
    "eva02_tiny_patch14_224": ["PEFT leaves 1"], "vit_tiny_patch16_224": [],
}  # fmt: skip


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **MODELS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model


def pixels(name: str) -> Tensor:
    size = MODELS[name]["img_size"]
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("spec", [LoraConfig(rank=2), AdaLoraConfig(budget=2)], ids=["lora", "adalora"])
@pytest.mark.parametrize("name", MODELS)
def test_every_adapted_layer_learns_is_merged_and_leaves_no_trace(name: str, spec: LoraConfig | AdaLoraConfig) -> None:
    model, x = built(name), pixels(name)
    with torch.no_grad():
        base = model(x)
    adapters = inject(model, spec)
    assert any(path.endswith("qkv") for path in adapters.layers)
    assert [note.split(" of these")[0] for note in adapters.notes] == NOTES[name]
    assert torch.allclose(model(x), base, atol=1e-5 * base.abs().max().item())
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model(x).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in adapters.parameters())
    with torch.no_grad():
        adapted = model(x)
        with adapters.base():
            assert torch.equal(model(x), base)
        assert torch.equal(model(x), adapted)
        assert (adapted - base).abs().max() > 1e-2 * base.abs().max()
        adapters.remove()
        assert torch.equal(model(x), base)


@pytest.mark.parametrize("name", MODELS)
def test_merged_is_adapted_without_the_switch(name: str) -> None:
    model, x = built(name), pixels(name)
    before = [getattr(module, "qkv_bias_separate", None) for module in model.modules()]
    adapters = inject(model, LoraConfig(rank=2))
    add_adapter(adapters, LoraConfig(rank=2, targets="qkv"), name="second", seed=1)
    adapters.activate("default")
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.full_like(parameter, 0.05))
        adapted = model(x)
        merged = merge(adapters)(x)
    assert [getattr(module, "qkv_bias_separate", None) for module in model.modules()] == before
    assert (merged - adapted).abs().max() <= 1e-5 * adapted.abs().max()


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_tiny_patch16_224"])
def test_peft_changes_nothing_by_a_layer_that_is_not_called(name: str) -> None:
    x = pixels(name)
    theirs = get_peft_model(built(name), PeftLoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False)).eval()
    with torch.no_grad():
        changed = not torch.equal(theirs(x), built(name)(x))
    assert changed == (not NOTES[name])


@pytest.mark.parametrize("name", MODELS)
def test_query_key_and_value_have_ranks_of_their_own_under_adalora(name: str) -> None:
    """Without its value, attention gives the bias of its output, whatever it is given; without query or key it does
    not. So the last of the three parts is the value."""
    model = built(name)
    path = next(path for path, _ in model.named_modules() if path.endswith("attn.qkv"))
    attention, calls = model.get_submodule(path.rpartition(".")[0]), []
    attention.register_forward_pre_hook(lambda _, given, named: calls.append((given, named)), with_kwargs=True)
    with torch.no_grad():
        model(pixels(name))
    (x, *others), named = calls[0]
    outputs = attention.qkv.out_features
    split = split_of(model, path, outputs)
    assert split is not None and split.names == ("q", "k", "v")
    for part, rows in zip(split.names, split.rows, strict=True):
        silent = copy.deepcopy(attention)
        with torch.no_grad():
            silent.qkv.weight[rows] = 0
            one, other = (silent(given, *others, **named) for given in (x, x.flip(1) * 2 + 1))
        assert torch.allclose(one, other, atol=1e-5) == (part == "v")
    assert type(inject(model, AdaLoraConfig(budget=2)).adapters()[path]) is FusedAdaLoRA
