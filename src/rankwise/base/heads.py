"""Which modules of a classifier make its outputs."""

from __future__ import annotations

from typing import Any

from rankwise.base.timm_models import head_of, is_timm

IMAGE_HEADS = ("classifier", "score", "fc", "head", "dist_head", "cls_classifier", "distillation_classifier")


def head_modules(module: Any, *, images: bool) -> list[str]:
    """The modules that make a classifier's outputs. Beside the body of a model of texts there is nothing else; a model
    of images may have parts of its body there, so its head is known by its name."""
    if images and is_timm(module):
        return [head_of(module)]
    children = [(name, child) for name, child in module.named_children() if next(child.parameters(), None) is not None]
    body = module.base_model_prefix
    return [name for name, _ in children if (name in IMAGE_HEADS if images else name != body)]
