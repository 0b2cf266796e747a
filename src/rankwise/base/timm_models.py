"""Which modules of a classifier make its outputs, and models of timm (ResNet, EfficientNet, …), which transformers
loads inside a wrapper of its own.

A folder of timm's has the name of the architecture and its preprocessing in config.json, and no model_type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from rankwise.config.images import ImageProcessing
from rankwise.errors import ModelError
from rankwise.system.extras import need_extra

PREFIX = "timm_model."
IMAGE_HEADS = ("classifier", "score", "fc", "head", "dist_head", "cls_classifier", "distillation_classifier")


def is_timm_config(config: dict[str, Any]) -> bool:
    wrapped = config.get("model_type") in (None, "timm_wrapper")
    return wrapped and isinstance(config.get("architecture"), str) and isinstance(config.get("pretrained_cfg"), dict)


def is_timm(module: nn.Module) -> bool:
    return type(module).__name__ == "TimmWrapperForImageClassification"


def need_timm(name: str) -> None:
    need_extra("timm", f"{name}: a model of timm", "vision", ModelError)


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
