"""The one place that goes from settings to the method that they are settings of."""

from __future__ import annotations

from typing import Any

from rankwise.config.adapters import Adapting
from rankwise.methods.adalora import AdaLoraMethod
from rankwise.methods.full import FullMethod
from rankwise.methods.head import HeadMethod
from rankwise.methods.lora import LoraMethod
from rankwise.methods.method import Method
from rankwise.methods.vera import VeraMethod

METHODS: dict[str, Any] = {
    "lora": LoraMethod, "adalora": AdaLoraMethod, "vera": VeraMethod, "head": HeadMethod, "full": FullMethod,
}  # fmt: skip
"""By the name that a config has as `method`."""


def method_of(config: Adapting) -> Method:
    return METHODS[config.method](config)
