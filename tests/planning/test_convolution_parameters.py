"""A plan counts adapters over convolutions as they are injected, and says the same where it refuses."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rankwise.adapters.formats.peft import write_peft
from rankwise.adapters.targets import notes_about
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.errors import TargetError
from rankwise.forward.model_shape import shape_of_config
from rankwise.methods.inject import inject
from rankwise.planning.parameters import parameters_of, seen
from rankwise.planning.shape import ModelShape

STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
CONFIGS: dict[str, dict[str, Any]] = {
    "resnet": STAGES,
    "regnet": STAGES | {"groups_width": 4},
    "bit": STAGES | {"num_groups": 4},
    "convnext": {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "mobilenet_v2": {"depth_multiplier": 0.1, "depth_divisible_by": 4, "image_size": 32},
    "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "image_size": 32, "hidden_dim": 32},
}
SPECS = [
    LoraConfig(rank=3),
    LoraConfig(rank=3, targets="all-conv"),
    LoraConfig(rank=3, targets="all-linear"),
    LoraConfig(rank=4, targets="all-conv", rank_pattern={r".*convolution": 2}),
    LoraConfig(rank=3, targets="all-conv", dora=True),
    AdaLoraConfig(budget=3, initial=2, targets="all-conv"),
    AdaLoraConfig(budget="4k parameters", targets="all-conv"),
    AdaLoraConfig(budget="20KB"),
]


@cache
def shape_of_family(family: str) -> ModelShape:
    return shape_of_config({"model_type": family} | CONFIGS[family], family, "config.json")


@cache
def built(family: str) -> nn.Module:
    torch.manual_seed(0)
    return AutoModel.from_config(CONFIG_MAPPING[family](**CONFIGS[family])).eval()


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("family", CONFIGS)
def test_what_a_plan_counts_is_what_is_injected(family: str, spec: LoraConfig | AdaLoraConfig, tmp_path: Path) -> None:
    try:
        adapters = inject(built(family), spec)
    except TargetError as error:
        with pytest.raises(TargetError) as caught:
            parameters_of(shape_of_family(family), spec)
        assert str(caught.value) == str(error)
        return
    try:
        counted = parameters_of(shape_of_family(family), spec)
        each = {path: sum(one.numel() for one in part.parameters()) for path, part in adapters.adapters().items()}
        assert {planned.layer.path: planned.trainable for planned in counted.adapted} == each
        assert counted.trainable == sum(one.numel() for one in adapters.parameters())
        assert spec.select(seen(shape_of_family(family))).notes == notes_about(built(family), spec)
        if isinstance(spec, LoraConfig):
            write_peft(adapters, tmp_path / "adapter", base_model=family)
            assert counted.file_bytes == (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    finally:
        adapters.remove()


def test_some_families_adapt_convolutions_some_refuse_and_some_leave_out() -> None:
    def outcome(family: str) -> str:
        try:
            selection = LoraConfig(targets="all-conv").select(seen(shape_of_family(family)))
        except TargetError as error:
            return str(error)
        return " ".join(selection.notes)

    assert "standardises its weight" in outcome("bit") and "matches no layer" in outcome("bit")
    for family in ("regnet", "mobilenet_v2", "efficientnet", "convnext"):
        assert "convolve in groups" in outcome(family) and "matches no layer" not in outcome(family)
    assert outcome("resnet") == (
        '"all-conv" leaves out 1 convolution that reads the image (embedder.embedder.convolution)'
    )


def test_a_layer_of_images_has_its_kernel_and_channels() -> None:
    layers = {layer.path: layer for layer in shape_of_family("resnet").layers}
    stem = layers["embedder.embedder.convolution"]
    assert (stem.kind, stem.inputs, stem.outputs, stem.kernel, stem.channels) == ("conv2d", 3 * 49, 8, (7, 7), 3)
    assert layers["embedder.embedder.normalization"].channels == 0
