"""A checkpoint as a folder of timm's, which transformers opens as an image classifier (TimmWrapper).

The checkpoint's tensors are in the order of timm's own model, under other names: the i-th tensor takes the i-th name of
timm, and both shapes must agree.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.base.pickled_weights import read_pickled
from rankwise.errors import ModelError
from rankwise.rows.files.columnar import need
from rankwise.system.files import write_json

if TYPE_CHECKING:
    from torch import Tensor

LITE0 = "tf_efficientnet_lite0"
PREPROCESSING = {
    "input_size": [3, 224, 224],
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}


CLASSES = 1000
"""The number of ImageNet's classes."""


def need_timm(name: str) -> None:
    need("timm", f'the starter "{name}"', extra="vision")


def convert_lite0(file: Path, folder: Path) -> None:
    """Write the EfficientNet-Lite0 of a pickled checkpoint into `folder` as the hub's timm folders are laid out."""
    write_timm_folder(file, read_pickled(file, folder), LITE0, PREPROCESSING, folder)


def write_timm_folder(
    file: Path, tensors: list[tuple[str, Tensor]], architecture: str, preprocessing: dict[str, Any], folder: Path
) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, TimmWrapperForImageClassification

    with torch.device("meta"):
        config: Any = AutoConfig.for_model("timm_wrapper", architecture=architecture, num_labels=CLASSES)
        model: Any = TimmWrapperForImageClassification(config).timm_model
    expected = model.state_dict()
    problems = [
        f"{name} {tuple(tensor.shape)} where {ours} {tuple(own.shape)} belongs"
        for (name, tensor), (ours, own) in zip(tensors, expected.items(), strict=False)
        if tensor.shape != own.shape or tensor.dtype != own.dtype
    ]
    if len(tensors) != len(expected):
        problems.insert(0, f"{len(tensors)} tensors instead of {len(expected)}")
    if problems:
        raise ModelError(f"{file} is not a {architecture}: {'; '.join(problems[:4])}.")
    named = {name: tensor for name, (_, tensor) in zip(expected, tensors, strict=True)}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {**preprocessing, "num_classes": model.num_classes, "pool_size": [7, 7], "fixed_input_size": False,
                "first_conv": model.pretrained_cfg["first_conv"], "classifier": model.pretrained_cfg["classifier"],
                "tag": "in1k", "custom_load": False}  # fmt: skip
    write_json(folder / "config.json", {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "pretrained_cfg": settings,
    })  # fmt: skip
