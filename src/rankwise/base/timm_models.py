"""Which modules of a classifier make its outputs, and models of timm (ResNet, EfficientNet, …), which transformers
loads inside a wrapper of its own.

A folder of timm's has the name of the architecture and its preprocessing in config.json, and no model_type.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.base.config_check import is_timm_config
from rankwise.base.pickled_weights import read_pickled
from rankwise.config.images import ImageProcessing
from rankwise.errors import ModelError
from rankwise.system.extras import need_extra
from rankwise.system.files import write_json

if TYPE_CHECKING:
    from torch import Tensor, nn

PREFIX = "timm_model."
IMAGE_HEADS = ("classifier", "score", "fc", "head", "dist_head", "cls_classifier", "distillation_classifier")
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


def is_timm(module: nn.Module) -> bool:
    return type(module).__name__ == "TimmWrapperForImageClassification"


def need_timm(config: dict[str, Any], where: str) -> None:
    """Refuse a folder of timm's where its library is not installed."""
    if is_timm_config(config):
        need_extra("timm", f"{where}: a model of timm", "vision", ModelError)


def head_modules(module: Any, *, images: bool) -> list[str]:
    """The modules that make a classifier's outputs. Beside the body of a model of texts there is nothing else; a model
    of images may have parts of its body there, so its head is known by its name."""
    if images and is_timm(module):
        return [_head_of(module)]
    children = [(name, child) for name, child in module.named_children() if next(child.parameters(), None) is not None]
    body = module.base_model_prefix
    return [name for name, _ in children if (name in IMAGE_HEADS if images else name != body)]


def _head_of(module: nn.Module) -> str:
    """The path of the layer that makes the logits."""
    inner: Any = module.get_submodule("timm_model")
    head = inner.get_classifier()
    return next(path for path, one in module.named_modules() if one is head)


def set_config(module: nn.Module, classes: Sequence[str], processing: ImageProcessing) -> None:
    """Put the names of classes and the preprocessing where timm's config.json has them, for a model that is saved."""
    config: Any = module.config
    if classes:
        config.label_names = list(classes)
    config.num_classes = config.num_labels
    squashes = not isinstance(processing.resize, int)
    edge = min(processing.resize) if not isinstance(processing.resize, int) else processing.resize
    config.pretrained_cfg = (config.pretrained_cfg or {}) | {
        "input_size": [3, processing.size, processing.size],
        "crop_pct": processing.size / edge,
        "crop_mode": "squash" if squashes else "center",
        "interpolation": processing.interpolation,
        "mean": list(processing.mean),
        "std": list(processing.std),
    }


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
