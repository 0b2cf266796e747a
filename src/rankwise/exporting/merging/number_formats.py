"""The number formats that a base's weights may be stored in, and how a change is added to each.

    W' = round(W + D),   computed in float32, for float64 in float64, and rounded once

This is the one place that knows formats: a quantised one (int8, NF4, GGUF's blocks) becomes mergeable when it is
entered here with what turns its bytes into numbers and back. Until then it is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class NumberFormat:
    """`stored` is what lies in the file and `working` what a change is added in."""

    code: str
    """As safetensors names it."""
    stored: torch.dtype
    working: torch.dtype

    @property
    def name(self) -> str:
        return str(self.stored).removeprefix("torch.")

    @property
    def rounding(self) -> float:
        """The largest relative error of one rounding of a number that is not too small for the format."""
        return torch.finfo(self.stored).eps / 2


FORMATS: Mapping[str, NumberFormat] = {
    code: NumberFormat(code, stored, torch.promote_types(stored, torch.float32))
    for code, stored in (
        ("F64", torch.float64), ("F32", torch.float32), ("BF16", torch.bfloat16), ("F16", torch.float16),
    )
}  # fmt: skip
BY_NAME = {form.name: form for form in FORMATS.values()}
QUANTISED = {
    "I8": "8-bit integers (int8)", "U8": "packed bytes (such as NF4 or GGUF's blocks)", "I32": "packed integers",
    "F8_E4M3": "8-bit floating point (FP8)", "F8_E5M2": "8-bit floating point (FP8)", "F4": "4-bit floating point",
}  # fmt: skip


def refusal(code: str, key: str) -> str | None:
    """Why a change cannot be merged into a tensor of this format; None where it can."""
    if code in FORMATS:
        return None
    form = QUANTISED.get(code, code)
    return (
        f'"{key}" of the base is stored as {form}, which a change cannot be merged into yet. Use the base in float32, '
        "bfloat16 or float16"
    )
