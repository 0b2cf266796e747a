"""What an adapter may and may not change, on every host and architecture we claim."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from conftest import ARCHITECTURES, tiny_model
from rankwise.adapters.set import AdapterSet
from rankwise.adapters.wrapper import AdapterWrapper
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.errors import ConfigError, TargetError
from rankwise.kernels.prepacked import prepacked_weights
from rankwise.methods.inject import add_adapter, inject

IDS = torch.arange(48).reshape(2, 24) % 96
EMBEDDINGS = {"llama": "embed_tokens", "gpt2": "wte", "neox": "embed_in", "gptj": "wte", "bert": "word_embeddings"}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def randomise(adapters: AdapterSet, name: str = "default", seed: int = 1) -> None:
    """What training would have made of it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters(name):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_injected_and_untrained_is_the_base_bit_for_bit(architecture: str, dtype: torch.dtype) -> None:
    model = tiny_model(architecture).to(dtype)
    before = logits(model)
    adapters = inject(model, LoraConfig(rank=3, targets=("all-linear", EMBEDDINGS[architecture]), dropout=0.1))
    assert len(adapters.layers) >= 8
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_trained_adapter_changes_the_model_and_ejecting_restores_it_object_for_object(architecture: str) -> None:
    model = tiny_model(architecture)
    before, modules = logits(model), dict(model.named_modules())
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    adapters = inject(model, LoraConfig(targets=("all-linear", EMBEDDINGS[architecture])))
    randomise(adapters)
    assert not torch.allclose(logits(model), before)
    assert adapters.remove() is model
    assert torch.equal(logits(model), before)
    after = dict(model.named_modules())
    assert after.keys() == modules.keys() and all(after[path] is modules[path] for path in modules)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trainable


def hosts() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    torch.manual_seed(0)
    return {
        "linear": (nn.Linear(5, 7), torch.randn(3, 5)),
        "linear without bias": (nn.Linear(5, 7, bias=False), torch.randn(2, 3, 5)),
        "conv1d": (Conv1D(7, 5), torch.randn(2, 3, 5)),
        "embedding": (nn.Embedding(11, 7, padding_idx=2), torch.tensor([[0, 2, 10], [4, 4, 1]])),
    }


def test_lora_is_alpha_over_rank_times_b_times_a_written_out() -> None:
    host, x = hosts()["linear"]
    model = nn.Sequential(host)
    adapters = inject(model, LoraConfig(rank=2, alpha=5.0, targets=("0",)))
    randomise(adapters)
    adapter = adapters.adapters()["0"]
    expected = F.linear(x, host.weight, host.bias) + 5.0 / 2 * x @ adapter.A.T @ adapter.B.T
    assert torch.allclose(model(x), expected, atol=1e-6)


def test_a_starts_uniform_within_one_over_root_inputs_and_b_at_zero() -> None:
    model = nn.Sequential(nn.Linear(400, 50))
    adapter = inject(model, LoraConfig(rank=64, targets=("0",))).adapters()["0"]
    assert adapter.A.abs().max() <= 1 / 20 and adapter.A.abs().max() > 0.049
    assert abs(adapter.A.std().item() - 1 / (3 * 400) ** 0.5) < 2e-3
    assert torch.count_nonzero(adapter.B) == 0


def test_one_seed_gives_one_start_and_another_gives_another() -> None:
    first, second, third = (inject(tiny_model("llama"), seed=seed).parameters() for seed in (7, 7, 8))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], third[0])


def test_two_active_adapters_add_up_and_none_is_the_base() -> None:
    host, x = hosts()["linear"]
    model = nn.Sequential(host)
    base = model(x)
    adapters = inject(model, LoraConfig(rank=2, targets=("0",)), name="one")
    add_adapter(adapters, LoraConfig(rank=3, targets=("0",)), name="two", seed=1)
    randomise(adapters, "one", 1)
    randomise(adapters, "two", 2)
    assert adapters.active == ("two",)
    change = {}
    for name in ("one", "two"):
        adapters.activate(name)
        change[name] = model(x) - base
        assert change[name].abs().max() > 1e-3
    adapters.activate("one", "two")
    assert torch.allclose(model(x), base + change["one"] + change["two"], atol=1e-6)
    adapters.activate()
    assert torch.equal(model(x), base)


def test_an_adapter_named_like_the_beginning_of_another_is_not_confused_with_it() -> None:
    # Peft finds its layers by substring, so that "task" also means "task2".
    adapters = inject(tiny_model("llama"), LoraConfig(rank=1, targets=("q_proj",)), name="task")
    add_adapter(adapters, LoraConfig(rank=2, targets=("v_proj",)), name="task2")
    assert set(adapters.adapters("task")) == {f"model.layers.{block}.self_attn.q_proj" for block in (0, 1)}
    adapters.activate("task")
    assert adapters.active == ("task",)


def test_disabled_is_the_base_and_restores_what_was_there_nested_too() -> None:
    model = tiny_model("gpt2")
    base = logits(model)
    adapters = inject(model, LoraConfig(rank=2))
    randomise(adapters)
    adapted = logits(model)
    with adapters.base():
        assert torch.equal(logits(model), base)
        with adapters.base():
            assert torch.equal(logits(model), base)
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), adapted)
    with pytest.raises(RuntimeError), adapters.base():
        raise RuntimeError
    assert torch.equal(logits(model), adapted)


def test_only_the_adapter_learns_and_it_is_held_in_float32() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    adapters = inject(model, LoraConfig(rank=2, targets=("all-linear", "embed_tokens")))
    model(input_ids=IDS).logits.float().sum().backward()
    learned = adapters.parameters()
    assert all(parameter.dtype == torch.float32 for parameter in learned)
    known = {id(parameter) for parameter in learned}
    others = [parameter for parameter in model.parameters() if id(parameter) not in known]
    assert others and all(parameter.grad is None and not parameter.requires_grad for parameter in others)
    assert all(parameter.grad is not None for parameter in learned)
    assert all(adapter.B.grad.abs().max() > 0 for path, adapter in adapters.adapters().items() if "embed" not in path)


def test_the_base_s_own_dropout_stays_off_while_the_adapters_train() -> None:
    # GPT-2 has three dropouts; with them on, a step would depend on how it is portioned.
    model = tiny_model("gpt2")
    adapters = inject(model, LoraConfig(rank=2, dropout=0.5))
    randomise(adapters)
    adapters.train()
    training = [name for name, module in model.named_modules() if module.training]
    assert training and all(".adapters" in name for name in training)
    assert not torch.equal(logits(model), logits(model))
    adapters.train(False)
    assert torch.equal(logits(model), logits(model))


def test_dropout_acts_in_training_alone() -> None:
    model = nn.Sequential(nn.Linear(64, 8)).eval()
    adapters = inject(model, LoraConfig(rank=4, targets=("0",), dropout=0.5))
    randomise(adapters)
    x = torch.randn(4, 64)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_a_layer_used_in_two_places_is_adapted_and_restored_in_both() -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    adapters = inject(model, LoraConfig(rank=1, targets=("a",)))
    assert model["a"] is model["b"][0] and isinstance(model["a"], AdapterWrapper)
    adapters.remove()
    assert model["a"] is shared and model["b"][0] is shared


def test_a_failed_injection_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    with pytest.raises(TargetError):
        inject(model, LoraConfig(targets=("q_proj", "q_prj")))
    assert not any(isinstance(module, AdapterWrapper) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_injecting_twice_and_names_that_are_taken_or_wrong_are_refused() -> None:
    model = tiny_model("llama")
    adapters = inject(model, LoraConfig(targets=("q_proj",)))
    with pytest.raises(TargetError, match="already has adapters"):
        inject(model, LoraConfig(targets=("v_proj",)))
    with pytest.raises(TargetError, match='already has an adapter "default"'):
        add_adapter(adapters, LoraConfig(targets=("v_proj",)))
    with pytest.raises(TargetError, match=r"'a\.b'"):
        add_adapter(adapters, LoraConfig(targets=("v_proj",)), name="a.b")
    with pytest.raises(TargetError, match='no adapter "other"; its adapters are default'):
        adapters.activate("other")


def test_a_model_can_still_ask_an_adapted_layer_for_what_its_host_has() -> None:
    model = tiny_model("gpt2")
    inject(model, LoraConfig(targets=("c_attn",)))
    layer = model.transformer.h[0].attn.c_attn
    assert layer.nf == 96 and layer.weight is layer.base_layer.weight
    with pytest.raises(AttributeError):
        _ = layer.nothing_like_it


def test_a_rank_of_zero_or_a_scale_of_zero_is_refused() -> None:
    for wrong in ({"rank": 0}, {"alpha": 0.0}, {"alpha": float("nan")}, {"rank": 5000}, {"dropout": 1.0}):
        with pytest.raises(ConfigError):
            LoraConfig(**wrong)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("decoding", [False, True])
@pytest.mark.parametrize("method", [LoraConfig(rank=8), AdaLoraConfig(budget=8, initial=8)], ids=["lora", "adalora"])
def test_a_change_below_the_spacing_of_bfloat16_is_there_on_average(
    method: LoraConfig | AdaLoraConfig, decoding: bool, bias: bool
) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(256, 512, bias=bias)).bfloat16(), torch.randn(4, 64, 256).bfloat16()
    adapters = inject(model, method.model_copy(update={"targets": ("0",)}))
    randomise(adapters)
    with adapters.scaled(0):
        bare = model(x)
    (layer,) = adapters.layers.values()
    with adapters.scaled(float(bare.std() / 4096 / (x.float() @ layer.adapter("default").delta().T).std())):
        change = x.double() @ layer.adapter("default").delta().double().T
        with torch.inference_mode(decoding), prepacked_weights(model) if decoding else nullcontext():
            y = model(x)
    share = float(((y - bare).double() * change).sum() / change.square().sum())
    assert 0.9 < share < 1.1
