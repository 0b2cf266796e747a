"""Models of timm (ResNet, EfficientNet, …), which transformers loads inside a wrapper of its own.

A folder of timm's has the name of the architecture and its preprocessing in config.json, and no model_type.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from rankwise.errors import ModelError
from rankwise.system.extras import need_extra

PREFIX = "timm_model."


def is_timm_config(config: dict[str, Any]) -> bool:
    wrapped = config.get("model_type") in (None, "timm_wrapper")
    return wrapped and isinstance(config.get("architecture"), str) and isinstance(config.get("pretrained_cfg"), dict)


def is_timm(module: nn.Module) -> bool:
    return type(module).__name__ == "TimmWrapperForImageClassification"


def need_timm(name: str) -> None:
    need_extra("timm", f"{name}: a model of timm", "vision", ModelError)


def head_of(module: nn.Module) -> str:
    """The path of the layer that makes the logits."""
    inner: Any = module.get_submodule("timm_model")
    head = inner.get_classifier()
    return next(path for path, one in module.named_modules() if one is head)
