"""What is laid over the base model: the rank, the scale, and which layers get it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from rankwise.spec.spec import Number, Spec

Rank = Annotated[int, Field(ge=1, le=4096, strict=True)]
Alpha = Annotated[Number, Field(gt=0, le=1e6)]


class LoraSpec(Spec):
    """delta W = (alpha / rank) B A.

    The defaults follow Schulman et al. 2025 ("LoRA Without Regret"): every linear layer, alpha 32. A target and a
    pattern's key are matched alike: a word of letters, digits, `_`, `.` and `-` is the end of a module's path;
    anything else is a regular expression for the whole path or its end after a dot.
    """

    rank: Rank = 16
    alpha: Alpha = 32.0
    dropout: Number = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = ("all-linear",)
    """`all-linear`: every linear layer but the output head; or names and regular expressions."""
    layers: tuple[Annotated[int, Field(ge=0, strict=True)], ...] | None = None
    """Block numbers to keep, written 0-3,7 or [0, 1, 2, 3, 7]."""
    rank_pattern: dict[str, Rank] = Field(default_factory=dict)
    alpha_pattern: dict[str, Alpha] = Field(default_factory=dict)

    @field_validator("targets", mode="before")
    @classmethod
    def _targets_as_list(cls, value: object) -> object:
        if isinstance(value, str):
            value = _split_names(value)
        if isinstance(value, list | tuple) and (not value or not all(value)):
            raise ValueError("name at least one layer, or all-linear")
        return value

    @field_validator("layers", mode="before")
    @classmethod
    def _layers_as_numbers(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            return (value,)
        return _parse_layers(value) if isinstance(value, str) else value


def _split_names(text: str) -> list[str]:
    """`q_proj,(k|v)_proj` is two targets; a comma inside brackets belongs to an expression."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _parse_layers(text: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError("write block numbers as 0-3,7")
        low, high = int(first), int(last) if dash else int(first)
        if high < low or high - low > 10_000:
            raise ValueError(f"{part.strip()} is no range of blocks")
        numbers.extend(range(low, high + 1))
    return tuple(sorted(set(numbers)))
