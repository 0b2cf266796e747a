"""The one place that goes from settings to the method that they are settings of, which is imported when it is used."""

from __future__ import annotations

from pkgutil import resolve_name

from rankwise.config.adapters import Adapting
from rankwise.methods.method import Method

METHODS = {
    "lora": "rankwise.methods.lora:LoraMethod", "adalora": "rankwise.methods.adalora:AdaLoraMethod",
    "vera": "rankwise.methods.vera:VeraMethod", "head": "rankwise.methods.adapter:HeadMethod",
    "full": "rankwise.methods.full:FullMethod",
}  # fmt: skip
"""By the name that a config has as `method`."""


def method_of(config: Adapting) -> Method:
    return resolve_name(METHODS[config.method])(config)
