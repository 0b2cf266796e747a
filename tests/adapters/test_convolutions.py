"""An adapter over a convolution computes on what its base convolves; what cannot be merged is refused by name."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from rankwise.adapters.adapter import conv_problem, on_conv2d
from rankwise.adapters.base_layers import features_of, kind_of, oriented
from rankwise.adapters.eva import eva_choices
from rankwise.adapters.lora import LoRA
from rankwise.adapters.set import merge
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.errors import TargetError
from rankwise.methods.adalora import TrainableAdaLora
from rankwise.methods.inject import inject

LAYERS = {
    "3x3": nn.Conv2d(6, 8, 3, padding=1),
    "strided": nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False),
    "1x1": nn.Conv2d(6, 8, 1),
    "oblong": nn.Conv2d(6, 8, (3, 5), stride=(2, 1), padding=(0, 2)),
    "dilated": nn.Conv2d(6, 8, 3, padding=2, dilation=2),
    "same": nn.Conv2d(6, 8, (2, 3), padding="same", dilation=2),
    "valid": nn.Conv2d(6, 8, 3, padding="valid"),
    "timm same": Conv2dSame(6, 8, 3, stride=2),
    "timm same, oblong": Conv2dSame(6, 8, (5, 2), stride=(3, 2), dilation=(1, 2)),
    "timm same, 1x1": Conv2dSame(6, 8, 1, stride=2, bias=False),
}


def filled(parameters: list[nn.Parameter], scale: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


@pytest.mark.parametrize("size", [(9, 9), (8, 11), (7, 6)], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_the_factors_give_what_their_product_in_the_weight_gives(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    base = deepcopy(LAYERS[name]).double()
    assert kind_of(base) == "conv2d"
    inputs, outputs = features_of(base)
    A, B, x = torch.randn(3, inputs).double(), torch.randn(outputs, 3).double(), torch.randn(2, 6, *size).double()
    change = on_conv2d(base)(x, A, B)
    with torch.no_grad():
        before = base(x)
        base.weight.add_(oriented(base, B @ A))
        after = base(x)
    assert change.abs().max() > 0.1
    assert torch.allclose(before + change, after, rtol=0, atol=1e-12)


class OwnForward(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (1, 0, 1, 0)))


REFUSED = {
    "groups": (nn.Conv2d(8, 8, 3, groups=2), "they convolve in groups"),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8), "they convolve in groups"),
    "depthwise same": (Conv2dSame(8, 8, 3, groups=8), "they convolve in groups"),
    "reflect": (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), 'they pad the image by "reflect"'),
    "standardised": (StdConv2d(8, 8, 3), "they are StdConv2d, which standardises its weight"),
    "scaled": (ScaledStdConv2d(8, 8, 3), "they are ScaledStdConv2d, which standardises its weight"),
    "own forward": (OwnForward(8, 8, 3), "they are OwnForward, which convolves in a way of its own"),
    "weight norm": (parametrizations.weight_norm(nn.Conv2d(8, 8, 3)), "their weight is computed from other"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_two_factors_cannot_be_merged_into_is_refused_by_name_and_left_out_of_all_conv(name: str) -> None:
    refused, why = REFUSED[name]
    assert why in conv_problem(refused)
    model = nn.ModuleDict({"stem": nn.Conv2d(3, 8, 3), "odd": refused, "plain": nn.Conv2d(8, 8, 3)})
    with pytest.raises(TargetError) as caught:
        inject(model, LoraConfig(targets="odd"))
    assert 'target "odd" names 1 convolution that cannot be adapted (odd): ' + why in str(caught.value)
    adapters = inject(model, LoraConfig(targets="all-conv"))
    assert list(adapters.layers) == ["plain"]
    adapters.remove()
    assert list(inject(model, LoraConfig(targets="odd|plain")).layers) == ["plain"]


def test_dora_and_a_convolution_do_not_go_together() -> None:
    with pytest.raises(TargetError, match='dora is for linear layers and Conv1D, and the targets include "1"'):
        inject(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), LoraConfig(targets="all-conv", dora=True))


def test_eva_and_a_convolution_do_not_go_together() -> None:
    with pytest.raises(TargetError, match=r'start "eva" works on linear layers and Conv1D only, .* "0" \(Conv2d\)'):
        eva_choices(nn.Sequential(nn.Conv2d(8, 8, 3)), LoraConfig(targets="all-conv", start="eva"), lambda _: None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_untrained_is_the_base_trained_is_another_and_merged_is_what_was_trained(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Conv2dSame(8, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 4, 1))
    model, x = model.to(dtype).eval(), torch.randn(2, 3, 11, 12).to(dtype)
    with torch.no_grad():
        base = model(x)
        adapters = inject(model, LoraConfig(rank=3, alpha=6, targets=("all-conv", "0"), dropout=0.1))
        assert list(adapters.layers) == ["0", "2", "4"] and torch.equal(model(x), base)
        filled(adapters.parameters())
        adapted = model(x)
        with adapters.base():
            assert torch.equal(model(x), base)
        assert (adapted - base).abs().max() > 0.1 * base.abs().max()
        merged = merge(adapters)(x)
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    assert (merged - adapted).abs().max() <= tolerance * adapted.abs().max()


def test_adalora_of_a_narrow_convolution_begins_with_no_more_triplets_than_it_has_directions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 24, 1), nn.Conv2d(24, 5, 1), nn.Conv2d(5, 24, 3))
    adapters = inject(model, AdaLoraConfig(budget=12, initial=2, targets="all-conv", start="orthonormal"))
    assert {path: adapter.rank for path, adapter in adapters.adapters().items()} == {"1": 8, "2": 5, "3": 24}
    for adapter in adapters.adapters().values():
        assert torch.allclose(adapter.Q @ adapter.Q.T, torch.eye(adapter.rank), atol=1e-5)
        assert torch.allclose(adapter.P @ adapter.P.T, torch.eye(adapter.rank), atol=1e-5)


def test_adalora_moves_triplets_from_convolutions_that_do_not_need_them() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1)), torch.randn(2, 3, 9, 9)
    spec = AdaLoraConfig(budget="3 triplets", initial=2, targets="all-conv", warmup=0, final=0.5, interval=1)
    adapters = inject(model, spec)
    trainable = TrainableAdaLora(adapters, spec, steps=8)
    optimizer = torch.optim.AdamW(trainable.parameter_groups(), lr=0.05)
    losses: list[float] = []
    for step in range(8):
        loss = (model(x) - 1).square().mean()
        loss.backward()
        with torch.no_grad():  # as if the first had nothing to learn
            for parameter in adapters.adapters()["1"].parameters() if "1" in adapters.adapters() else ():
                parameter.grad.zero_()
        trainable.add_penalty()
        optimizer.step()
        trainable.after_step(step, optimizer)
        optimizer.zero_grad(set_to_none=False)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert {path: adapter.rank for path, adapter in adapters.adapters().items()} == {"2": 3}
    adapted = model(x).detach()
    trainable.finish()
    assert type(adapters.adapters()["2"]) is LoRA
    assert torch.allclose(model(x), adapted, atol=1e-6)
