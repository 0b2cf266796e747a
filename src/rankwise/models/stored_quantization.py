"""How the weights of a folder are quantised already, by its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = {"load_in_4bit": "nf4", "load_in_8bit": "int8"}
"""What bitsandbytes' settings say, by the key that is true."""


def quantization_problem(config: Mapping[str, Any]) -> str | None:
    """Why the quantised weights of a folder cannot be read; None where they can, or where there are none."""
    settings = config.get("quantization_config")
    if not settings:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    method = method or ("bitsandbytes" if isinstance(settings, dict) and any(map(settings.get, KINDS)) else None)
    if method != "bitsandbytes":
        return (
            f"its weights are quantised by {method or 'an unknown method'}, which is not read. bitsandbytes' nf4 and "
            "int8, GGUF files and full-precision folders are; quantise the full-precision model with --quantize nf4."
        )
    if settings.get("load_in_4bit") and settings.get("bnb_4bit_quant_type", "fp4") != "nf4":
        kind = settings.get("bnb_4bit_quant_type", "fp4")
        return f"its weights are bitsandbytes' {kind}, which is not read; nf4 and int8 are."
    return None


def stored_format(config: Mapping[str, Any]) -> str | None:
    """`nf4` or `int8` where bitsandbytes quantised the weights of a folder with this config.json."""
    settings = config.get("quantization_config")
    return next((kind for key, kind in KINDS.items() if settings.get(key)), None) if settings else None
