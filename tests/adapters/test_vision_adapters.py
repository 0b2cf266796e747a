"""What an adapter may and may not change, on every family of image models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kit.vision_models import FAMILIES, LABELS, TIMM, images, tiny
from rankwise.adapters.formats.peft import lay_peft, write_peft
from rankwise.adapters.set import AdapterSet, merge
from rankwise.adapters.targets import notes_about
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.errors import TargetError
from rankwise.methods.adalora import TrainableAdaLora
from rankwise.methods.inject import inject
from rankwise.methods.lora import TrainableLoRA

ADALORA = AdaLoraConfig(budget=2, targets="all-linear", warmup=0, final=0.4, interval=1)
CASES = [
    *((family, LoraConfig(rank=3, targets="all-linear")) for family in FAMILIES if family not in TIMM),
    *((family, LoraConfig(rank=3, targets="all-conv")) for family in ("convnext", *TIMM)),
    *((family, ADALORA) for family in FAMILIES if family not in TIMM),
    *((family, ADALORA.model_copy(update={"targets": ("all-conv",)})) for family in ("convnext", *TIMM)),
]
NAMES = [f"{family}-{spec.method}-{spec.targets[0]}" for family, spec in CASES]
STEPS = 6


def head_of(family: str) -> str:
    return TIMM[family][3] if family in TIMM else "classifier"


def adapted(family: str, spec: LoraConfig | AdaLoraConfig) -> AdapterSet:
    return inject(tiny(family)[0], spec, heads=[head_of(family)])


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(pixel_values=images(4)).logits


def trained(adapters: AdapterSet, spec: LoraConfig | AdaLoraConfig) -> list[float]:
    """A few steps on eight images."""
    lora = isinstance(spec, LoraConfig)
    trainable = TrainableLoRA(adapters, spec) if lora else TrainableAdaLora(adapters, spec, STEPS)
    groups = [group | {"lr": 0.01 * group["rate"]} for group in trainable.parameter_groups()]
    optimizer = torch.optim.AdamW(groups)
    pixels, labels = images(8, seed=5), torch.arange(8) % len(LABELS)
    trainable.train()
    losses: list[float] = []
    for step in range(STEPS):
        loss = F.cross_entropy(adapters.model(pixel_values=pixels).logits, labels)
        loss.backward()
        trainable.add_penalty()
        trainable.before_step()
        optimizer.step()
        trainable.after_step(step, optimizer)
        optimizer.zero_grad(set_to_none=False)
        losses.append(loss.item())
    trainable.train(False)
    return losses


def test_every_family_is_among_the_cases() -> None:
    assert {family for family, _ in CASES} == set(FAMILIES)


@pytest.mark.parametrize(("family", "spec"), CASES, ids=NAMES)
def test_an_adapter_begins_as_the_base_learns_is_merged_and_leaves_no_trace(family, spec, tmp_path: Path) -> None:
    model, _ = tiny(family)
    base, state = logits(model), {name: value.clone() for name, value in model.state_dict().items()}
    adapters = inject(model, spec, heads=[head_of(family)])
    assert adapters.layers and torch.equal(logits(model), base)
    losses = trained(adapters, spec)
    assert losses[-1] < 0.9 * losses[0]
    tuned = logits(model)
    assert (tuned - base).abs().max() > 1e-2 * base.abs().max()
    with adapters.base():
        assert torch.equal(logits(model), base)
    write_peft(adapters, tmp_path / "adapter", base_model=family)
    again, _ = tiny(family)
    assert_alike(logits(lay_peft(again, tmp_path / "adapter").model), tuned)
    other = lay_peft(tiny(family)[0], tmp_path / "adapter")
    assert_alike(logits(merge(other)), tuned)
    assert adapters.remove() is model
    assert torch.equal(logits(model), base)
    after = model.state_dict()
    assert after.keys() == state.keys() and all(torch.equal(after[name], value) for name, value in state.items())


def assert_alike(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("family", [*TIMM])
def test_a_model_without_linear_layers_gets_adapters_on_its_convolutions_by_default_and_says_so(family: str) -> None:
    adapters = adapted(family, LoraConfig(rank=2))
    chosen = list(adapters.layers)
    assert chosen and all(isinstance(adapters.base_layer(path), nn.Conv2d) for path in chosen)
    adapters.remove()
    assert chosen == list(adapted(family, LoraConfig(rank=2, targets="all-conv")).layers)
    with pytest.raises(
        TargetError, match=r'"all-linear" matches no layer .* no linear layer but its head\. It has \d+'
    ):
        adapted(family, LoraConfig(targets="all-linear"))


def test_the_notes_name_what_all_conv_leaves_out() -> None:
    model, _ = tiny("efficientnet")
    head = AdapterSet(model)
    head.add_heads(["classifier"])
    default, stem, grouped = notes_about(model, LoraConfig())
    assert default.startswith("This model has no linear layer but its head, so its convolutions get the adapters")
    assert stem == '"all-conv" leaves out 1 convolution that reads the image (timm_model.conv_stem)'
    assert grouped.startswith(
        '"all-conv" leaves out 2 convolutions that cannot be adapted (timm_model.blocks.3.0.conv_dw, '
        "timm_model.blocks.4.0.conv_dw): they convolve in groups"
    )
    head.remove()
    assert inject(model, LoraConfig(), heads=["classifier"]).notes == [default, stem, grouped]
    assert notes_about(model, LoraConfig(targets="conv_pw|conv_pwl")) == []
    assert len(notes_about(model, LoraConfig(targets=r"blocks\..*"))) == 1
    assert "conv_dw" not in " ".join(notes_about(model, LoraConfig(targets="all-conv", layers="0-2")))


def test_what_reads_the_image_can_be_named_and_all_conv_says_why_it_has_nothing_else() -> None:
    assert list(adapted("vit", LoraConfig(targets="projection")).layers) == [
        "vit.embeddings.patch_embeddings.projection"
    ]
    with pytest.raises(TargetError) as caught:
        adapted("vit", LoraConfig(targets="all-conv"))
    assert str(caught.value) == (
        'target "all-conv" matches no layer of this model: it leaves out 1 convolution that reads the image '
        "(vit.embeddings.patch_embeddings.projection). Use all-linear."
    )
    assert list(adapted("efficientnet", LoraConfig(targets="conv_stem")).layers) == ["timm_model.conv_stem"]


def test_a_model_without_convolutions_that_can_be_adapted_says_why() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"))
    with pytest.raises(TargetError) as caught:
        inject(model, LoraConfig(targets="all-conv"))
    assert str(caught.value) == (
        'target "all-conv" matches no layer of this model: it leaves out 1 convolution that cannot be adapted (0): '
        "they convolve in groups, and the factors of PEFT's format would join channels that the groups keep apart; and "
        '1 convolution that cannot be adapted (1): they pad the image by "circular", and PEFT\'s factors by zeros. '
        "Use all-linear."
    )


def test_statistics_of_batch_norm_stay_those_of_the_base() -> None:
    adapters = adapted("resnet", LoraConfig(rank=2))
    norms = [module for module in adapters.model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    trained(adapters, LoraConfig(rank=2))
    assert norms and not any(norm.training for norm in norms)
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))
