"""An adapter turned up or down: nothing at 0, itself at 1, and in between as many times its change, in every form."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import tiny_model
from kit.fast_forms import in_float64, rows
from kit.summed_losses import summed
from rankwise.adapters.base_layers import oriented
from rankwise.adapters.formats.peft import read_peft, rewrite, write_peft
from rankwise.adapters.formats.peft_reader import read_weights
from rankwise.adapters.set import AdapterSet
from rankwise.adapters.weights import check_same
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.errors import AdapterError, ConfigError
from rankwise.forward.fused import FusedLoss
from rankwise.forward.reference import SupervisedLogits
from rankwise.methods.full import FullFineTuning
from rankwise.methods.inject import add_adapter, inject
from rankwise.rows.encoded.batches import portion
from rankwise.rows.encoded.packing import flat

IDS = torch.arange(48).reshape(2, 24) % 96
KINDS = {
    "lora": ("llama", LoraConfig(rank=3, alpha=5, targets=("all-linear", "embed_tokens"))),
    "root": ("llama", LoraConfig(rank=3, scaling="sqrt-rank")),
    "adalora": ("llama", AdaLoraConfig(budget=3)),
    "fused": ("gpt2", AdaLoraConfig(budget=3)),
    "parted": ("neox", AdaLoraConfig(budget=3)),
    "dora": ("llama", LoraConfig(rank=3, dora=True)),
    "dora with biases": ("gpt2", LoraConfig(rank=3, dora=True)),
}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def unsettle(adapters: AdapterSet, name: str = "default") -> None:
    """What training would have made of it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for adapter in adapters.adapters(name).values():
            for part, parameter in adapter.named_parameters():
                drawn = torch.randn(parameter.shape, generator=generator) * 0.2
                parameter.copy_(parameter * (1 + drawn) if part == "magnitude" else drawn)


def adapted(kind: str, dtype: torch.dtype = torch.float32) -> AdapterSet:
    architecture, spec = KINDS[kind]
    adapters = inject(tiny_model(architecture).to(dtype), spec)
    unsettle(adapters)
    return adapters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_at_one_it_is_itself_and_at_zero_the_base_bit_for_bit(kind: str, dtype: torch.dtype) -> None:
    adapters = adapted(kind, dtype)
    model = adapters.model
    whole = logits(model)
    with adapters.base():
        base = logits(model)
    assert not torch.equal(whole, base)
    with adapters.scaled(1):
        assert torch.equal(logits(model), whole)
    with adapters.scaled(0):
        assert torch.equal(logits(model), base)


@pytest.mark.parametrize("kind", KINDS)
def test_nested_strengths_multiply_and_what_was_there_comes_back(kind: str) -> None:
    adapters = adapted(kind)
    model = adapters.model
    whole = logits(model)
    with adapters.scaled(0.25):
        quarter = logits(model)
    with adapters.scaled(0.5):
        half = logits(model)
        with adapters.scaled(0.5):
            assert torch.equal(logits(model), quarter)
        with adapters.scaled(0):
            pass
        assert torch.equal(logits(model), half)
        with pytest.raises(RuntimeError), adapters.scaled(3):
            raise RuntimeError
        assert torch.equal(logits(model), half)
    assert torch.equal(logits(model), whole)
    assert not torch.equal(half, whole) and not torch.equal(half, quarter)


@pytest.mark.parametrize("strength", [1.0, 2.5])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_base_s_weights_with_so_many_times_the_change(kind: str, strength: float) -> None:
    adapters = adapted(kind, torch.float64)
    model, changed = adapters.model, tiny_model(KINDS[kind][0])
    in_float64(model)
    in_float64(changed)
    with torch.no_grad():
        for path, adapter in adapters.adapters().items():
            host = changed.get_submodule(path)
            host.weight.add_(strength * oriented(host, adapter.delta()))
    with adapters.scaled(strength):
        assert (logits(model) - logits(changed)).abs().max() < 1e-12
        for path, adapter in adapters.adapters().items():
            host = adapters.base_layer(path)
            told = oriented(host, adapter.delta())
            assert (host.weight + told - changed.get_submodule(path).weight).abs().max() < 1e-12


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_whole_weights_are_turned_too(architecture: str) -> None:
    model, base = tiny_model(architecture).double(), tiny_model(architecture).double()
    read: list[int] = []

    def read_base() -> dict[str, torch.Tensor]:
        read.append(1)
        return {name: weight.detach() for name, weight in tiny_model(architecture).double().named_parameters()}

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * 0.02)
    whole, ours, plain = FullFineTuning(model, read_base), logits(model), logits(base)
    with whole.scaled(1):
        assert torch.equal(logits(model), ours) and not read, "a base that nobody asks is not looked for"
    with whole.scaled(0):
        assert torch.equal(logits(model), plain)
    with torch.no_grad():
        for one, other in zip(base.parameters(), model.parameters(), strict=True):
            one.lerp_(other, 0.4)
    with torch.inference_mode(), whole.scaled(0.8), whole.scaled(0.5):
        assert torch.allclose(logits(model), logits(base), rtol=0, atol=1e-12)
        with whole.base():
            assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), ours) and len(read) == 1
    model(input_ids=IDS).logits.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())
    outputs, before = whole.merge(0.4, lambda: logits(model))
    assert before is None and torch.equal(outputs, logits(model))
    assert torch.allclose(outputs, logits(base), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("dora", "dora with biases", "parted")])
def test_the_fast_form_is_turned_with_it(kind: str) -> None:
    adapters = adapted(kind, torch.float64)
    in_float64(adapters.model)
    sequences, model = rows(), adapters.model

    def losses() -> list[float]:
        with torch.no_grad():
            return [
                sum(float(loss_of(batch)) for batch in batches)
                for loss_of, batches in (
                    (FusedLoss(model), flat(sequences, 60)),
                    (summed(SupervisedLogits(model)), portion(sequences, 200)),
                )
            ]

    before = losses()
    with adapters.scaled(0.3):
        ours, theirs = losses()
    assert ours == pytest.approx(theirs, rel=1e-10)
    assert ours != pytest.approx(before[0], rel=1e-4)


def test_all_active_adapters_are_turned_together_and_no_other() -> None:
    layer = nn.Linear(5, 7).double()
    model = nn.Sequential(layer)
    adapters = inject(model, LoraConfig(rank=2, targets=("0",)), name="one")
    for name in ("two", "idle"):
        add_adapter(adapters, LoraConfig(rank=2, targets=("0",)), name=name)
    for name in adapters.names:
        unsettle(adapters, name)
    adapters.activate("one", "two")
    x = torch.randn(3, 5, dtype=torch.float64)
    base, whole = layer(x), model(x)
    scale = adapters.adapters("idle")["0"].scale
    with adapters.scaled(0.5):
        assert torch.allclose(model(x) - base, (whole - base) / 2, atol=1e-12)
        assert adapters.adapters("idle")["0"].scale == scale


@pytest.mark.parametrize("kind", ["lora", "adalora", "fused"])
def test_what_is_written_inside_has_the_strength_in_it(kind: str, tmp_path: Path) -> None:
    adapters = adapted(kind)
    for adapter in adapters.adapters().values():
        for part in getattr(adapter, "parts", ()):
            part.decided = True
    with adapters.scaled(0.3):
        write_peft(adapters, tmp_path / "a", base_model="tiny")
        wanted = logits(adapters.model)
    found = read_peft(tiny_model(KINDS[kind][0]), tmp_path / "a").model
    assert (logits(found) - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("kind", ["lora", "root"])
def test_the_files_alone_are_turned_the_same(kind: str, tmp_path: Path) -> None:
    adapters = adapted(kind)
    write_peft(adapters, tmp_path / "held", base_model="tiny")
    held = read_weights(tmp_path / "held")
    rewrite(held.scaled(0.3), tmp_path / "turned", {})
    assert held.scaled(1) is held
    assert read_weights(tmp_path / "turned").settings == held.settings
    with adapters.scaled(0.3):
        wanted = logits(adapters.model)
    found = read_peft(tiny_model("llama"), tmp_path / "turned").model
    assert (logits(found) - wanted).abs().max() < 1e-5 * wanted.abs().max()
    with pytest.raises(AdapterError, match="would differ from the adapter"):
        check_same(held.scaled(0.3), held, tmp_path)


def test_dora_s_files_cannot_tell_a_strength(tmp_path: Path) -> None:
    adapters = adapted("dora")
    write_peft(adapters, tmp_path / "held", base_model="tiny")
    with pytest.raises(AdapterError, match=r"is DoRA.*to strength 0\.3.*Use the format merged"):
        read_weights(tmp_path / "held").scaled(0.3)
    with adapters.scaled(0.3), pytest.raises(AdapterError, match=r"is DoRA.*to strength 0\.3"):
        write_peft(adapters, tmp_path / "new", base_model="tiny")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("strength", [-0.1, 10.1, math.nan, math.inf])
def test_a_strength_that_means_nothing_is_refused(strength: float) -> None:
    adapters = adapted("lora")
    before = logits(adapters.model)
    with pytest.raises(ConfigError, match="is out of range"), adapters.scaled(strength):
        pass
    assert torch.equal(logits(adapters.model), before)
