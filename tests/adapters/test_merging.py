"""A merged model is the adapted one with no adapter in it, and parts what only one of two layers was adapted in."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from conftest import tiny_model
from rankwise.adapters.set import AdapterSet, merge
from rankwise.adapters.wrapper import AdapterWrapper
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.errors import TrainingError
from rankwise.methods.inject import inject

IDS = torch.arange(48).reshape(2, 24) % 96


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def unsettle(adapters: AdapterSet) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "neox", "gptj"])
@pytest.mark.parametrize(
    "spec", [LoraConfig(rank=3, alpha=5), LoraConfig(rank=3, dora=True), LoraConfig(rank=2, scaling="sqrt-rank")]
)
def test_merged_is_the_adapted_model(architecture: str, spec: LoraConfig) -> None:
    model = tiny_model(architecture)
    base = copy.deepcopy(model)
    adapters = inject(model, spec)
    unsettle(adapters)
    wanted = logits(model.double())
    merged = merge(adapters)
    assert merged is model and not any(isinstance(module, AdapterWrapper) for module in merged.modules())
    assert (logits(base) - wanted).abs().max() > 1e-2
    assert (logits(merged) - wanted).abs().max() < 1e-12
    assert merged.state_dict().keys() == base.state_dict().keys()


def test_triplets_are_merged_when_they_are_decided() -> None:
    model = tiny_model("llama")
    adapters = inject(model, AdaLoraConfig(budget=2))
    with pytest.raises(TrainingError, match="not decided"):
        merge(adapters)
    unsettle(adapters)
    for adapter in adapters.adapters().values():
        adapter.decided = True
    wanted = logits(model.double())
    assert (logits(merge(adapters)) - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_are_rounded_once_to_what_they_were(dtype: torch.dtype) -> None:
    model = tiny_model("llama").to(dtype)
    adapters = inject(model, LoraConfig(rank=3))
    unsettle(adapters)
    path, adapter = next(iter(adapters.adapters().items()))
    wanted = (adapters.base_layer(path).weight.double() + adapter.delta().double()).to(dtype)
    found = merge(adapters).get_submodule(path).weight
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-7)


def test_a_table_that_is_the_head_too_is_parted_from_it(tmp_path) -> None:
    model = tiny_model("gpt2").double()
    assert model.lm_head.weight is model.transformer.wte.weight
    head = model.lm_head.weight.clone()
    adapters = inject(model, LoraConfig(rank=2, targets=("wte", "c_attn")))
    unsettle(adapters)
    wanted = logits(model.double())
    merged = merge(adapters)
    assert torch.equal(merged.lm_head.weight, head) and not torch.equal(merged.transformer.wte.weight, head)
    assert (logits(merged) - wanted).abs().max() < 1e-12
    merged.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(merged))
