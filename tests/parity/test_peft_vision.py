"""Peft and we read each other's adapters of image models, with the same logits: linear layers and convolutions."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import AdaLoraConfig as PeftAdaLoraConfig
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from timm.layers import Conv2dSame
from torch import Tensor, nn

from kit.vision_models import FAMILIES, TIMM, images, tiny
from rankwise.adapters.formats.peft import WEIGHTS, read_peft, write_peft
from rankwise.adapters.set import AdapterSet
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.errors import AdapterError
from rankwise.methods.adalora import TrainableAdaLora
from rankwise.methods.inject import inject

CONVOLUTIONAL = ("convnext", *TIMM)
CASES = [*((family, "all-linear") for family in FAMILIES if family not in TIMM),
         *((family, "all-conv") for family in CONVOLUTIONAL)]  # fmt: skip


def head_of(family: str) -> str:
    return TIMM[family][3] if family in TIMM else "classifier"


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(pixel_values=images(4)).logits


@torch.no_grad()
def randomise(parameters: list[nn.Parameter], scale: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in parameters:
        parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def assert_alike(found: Tensor, expected: Tensor, base: Tensor) -> None:
    """Within 1e-5 of the largest logit, where the adapter itself changes far more than that."""
    scale = expected.abs().max()
    assert (expected - base).abs().max() > 1e-2 * scale, "an adapter that changes nothing would prove nothing"
    assert (found - expected).abs().max() <= 1e-5 * scale


def by_peft(family: str, folder: Path) -> nn.Module:
    return PeftModel.from_pretrained(tiny(family)[0], folder).eval()


@pytest.mark.parametrize(("family", "targets"), CASES, ids=str)
def test_peft_loads_our_lora_with_its_head(family: str, targets: str, tmp_path: Path) -> None:
    model, _ = tiny(family)
    base = logits(model)
    adapters = inject(model, LoraConfig(rank=3, alpha=5, targets=targets), heads=[head_of(family)])
    randomise(adapters.parameters())
    write_peft(adapters, tmp_path / "adapter", base_model=family)
    assert_alike(logits(by_peft(family, tmp_path / "adapter")), logits(model), base)


@pytest.mark.parametrize("family", TIMM)
def test_peft_loads_our_adalora_of_convolutions_with_a_rank_for_each_layer(family: str, tmp_path: Path) -> None:
    model, _ = tiny(family)
    base = logits(model)
    spec = AdaLoraConfig(budget=2, initial=2, targets="all-conv", warmup=0, final=0.5, interval=1)
    adapters = inject(model, spec)
    pruned(adapters, spec)
    write_peft(adapters, tmp_path / "adapter", base_model=family)
    ranks = {path: adapter.rank for path, adapter in adapters.adapters().items()}
    assert sum(ranks.values()) == 2 * len(adapters.layers) and len(set(ranks.values())) > 1
    stored = load_file(tmp_path / "adapter" / WEIGHTS)
    for path, rank in ranks.items():
        host = adapters.base_layer(path)
        assert stored[f"base_model.model.{path}.lora_A.weight"].shape == (rank, host.in_channels, *host.kernel_size)
        assert stored[f"base_model.model.{path}.lora_B.weight"].shape == (host.out_channels, rank, 1, 1)
    assert_alike(logits(by_peft(family, tmp_path / "adapter")), logits(model), base)


def pruned(adapters: AdapterSet, spec: AdaLoraConfig) -> None:
    """Trained with random gradients that are larger in later layers, until the ranks are decided."""
    trainable = TrainableAdaLora(adapters, spec, steps=4)
    optimizer = torch.optim.AdamW(trainable.parameter_groups(), lr=0.02)
    generator = torch.Generator().manual_seed(2)
    for step in range(4):
        for at, adapter in enumerate(adapters.adapters().values()):
            for parameter in adapter.parameters():
                parameter.grad.copy_(torch.randn(parameter.shape, generator=generator) * (1 + at))
        optimizer.step()
        trainable.after_step(step, optimizer)
        optimizer.zero_grad(set_to_none=False)
    assert trainable.final


@pytest.mark.parametrize(("family", "leaf"), [("vit", ["q_proj", "fc2"]), ("swin", ["v_proj", "reduction"]),
                                              ("resnet", ["conv2", "layer1.0.conv1"]), ("efficientnet", ["conv_pw"]),
                                              ("efficientnet-same", ["conv_exp", "conv_pwl"])], ids=str)  # fmt: skip
def test_we_load_peft_s_lora(family: str, leaf: list[str], tmp_path: Path) -> None:
    config = PeftLoraConfig(r=4, lora_alpha=6, target_modules=leaf, modules_to_save=[head_of(family)])
    theirs = get_peft_model(tiny(family)[0], config).eval()
    randomise([parameter for parameter in theirs.parameters() if parameter.requires_grad])
    theirs.save_pretrained(tmp_path)
    model, _ = tiny(family)
    base = logits(model)
    read_peft(model, tmp_path)
    assert_alike(logits(model), logits(theirs), base)


@pytest.mark.parametrize(("family", "leaf"), [("vit", ["q_proj", "fc2"]), ("resnet", ["conv2"]),
                                              ("efficientnet", ["conv_pwl", "conv_exp"])], ids=str)  # fmt: skip
def test_we_load_peft_s_adalora(family: str, leaf: list[str], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = get_peft_model(tiny(family)[0], PeftAdaLoraConfig(init_r=3, lora_alpha=5, total_step=9,
                                                                   target_modules=leaf)).eval()  # fmt: skip
    randomise([parameter for name, parameter in theirs.named_parameters() if "lora_" in name], 0.3)
    theirs.save_pretrained(tmp_path)
    model, _ = tiny(family)
    base = logits(model)
    read_peft(model, tmp_path)
    assert_alike(logits(model), logits(theirs), base)


def test_peft_s_lora_of_a_convolution_in_groups_is_refused_since_peft_cannot_merge_it_either(tmp_path: Path) -> None:
    def base() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(8, 8, 3, groups=4))

    config = PeftLoraConfig(r=4, target_modules=["0"])
    with pytest.warns(UserWarning, match="groups > 1"):
        theirs = get_peft_model(base(), config)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(NotImplementedError, match="groups > 1"):
        theirs.merge_and_unload()
    with pytest.raises(AdapterError, match="one of the convolutions that cannot be adapted: they convolve in groups"):
        read_peft(base(), tmp_path)


def test_what_peft_lays_over_timm_s_same_padding_is_of_that_class_too() -> None:
    theirs = get_peft_model(nn.Sequential(Conv2dSame(8, 8, 3, stride=2)), PeftLoraConfig(r=4, target_modules=["0"]))
    assert type(theirs.base_model.model[0].lora_A["default"]) is Conv2dSame
