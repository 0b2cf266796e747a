"""Weights in fewer bits: whether a config.json says that they are, and how many bytes they take.

nf4     4 bits a number, 8 for each 64 of them, 32 for each 64 x 256, and 4 bytes for each weight
int8    8 bits a number, 32 for each row
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

BLOCK, OUTER = 64, 256
"""Numbers of NF4 that share a maximum, and maxima that share one; a test compares both with the format's own."""
PACKED_PER_SECOND: Mapping[str, float] = {"nf4": 60e6, "int8": 300e6}
"""Numbers that a conversion packs in a second, roughly: for nf4 on one core of an EPYC; for int8 the disk limits it."""
EXACT = 4
"""Bytes of a number in float32."""
KINDS = {"load_in_4bit": "nf4", "load_in_8bit": "int8"}
"""What bitsandbytes' settings say, by the key that is true."""


def quantization_problem(config: Mapping[str, Any]) -> str | None:
    """Why the quantised weights of a folder cannot be read; None where they can, or where there are none."""
    settings = config.get("quantization_config")
    if not settings:
        return None
    settings = settings if isinstance(settings, dict) else {}
    method = settings.get("quant_method") or ("bitsandbytes" if any(map(settings.get, KINDS)) else None)
    if method != "bitsandbytes":
        return (
            f"its weights are quantised by {method or 'an unknown method'}, which is not read. bitsandbytes' nf4 and "
            "int8, GGUF files and full-precision folders are; quantise the full-precision model with --quantize nf4."
        )
    if settings.get("load_in_4bit") and (kind := settings.get("bnb_4bit_quant_type", "fp4")) != "nf4":
        return f"its weights are bitsandbytes' {kind}, which is not read; nf4 and int8 are."
    return None


def stored_format(config: Mapping[str, Any]) -> str | None:
    """`nf4` or `int8` where bitsandbytes quantised the weights of a folder with this config.json."""
    settings = config.get("quantization_config")
    return next((kind for key, kind in KINDS.items() if settings.get(key)), None) if settings else None


def packed_size(rows: int, columns: int, storage: str) -> int:
    """Bytes of a matrix (rows, columns)."""
    size = rows * columns
    if storage == "nf4":
        maxima = size // BLOCK
        return size // 2 + maxima + EXACT * math.ceil(maxima / OUTER) + EXACT
    return size + EXACT * rows if storage == "int8" else EXACT * size
