"""The trained numbers of one adapter, without its model: factors by layer, and modules that were trained whole.

    delta W  =  scale * B A                          A (R, I), B (O, R); of a convolution A (R, C, H, W), B (O, R, 1, 1)
                                                     of stacked experts A (E, R, I), B (E, O, R)

`portable` is for engines that read one rank and one alpha: R the largest rank, zeros where a layer has less,
lora_alpha = r = R, the scale of each layer in its B. Two adapters are compared layer by layer by

    |s B A - t D C|   =   sqrt(tr(X^T X Y Y^T)),   X = [s B, -t D],   Y = [A; C]

in float64, so that no change is ever laid out as a matrix.

What looks wrong in an adapter and may be right is said as a warning, since only the file is looked at: a scale above
100 (alpha / r is 1 to 4 in common recipes, rsLoRA's alpha / sqrt(r) seldom above 30, and mlx-lm's default is 20), and a
block that lacks a layer which its neighbours on both sides adapt, which was probably lost on the way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from rankwise.config.matching import ranges
from rankwise.errors import AdapterError, some
from rankwise.runs.records import Callback, StatusMessage, WarningMessage

STACKED = 3
"""Dimensions of a factor that has one matrix for each expert."""
Part = TypeVar("Part")
NEAR = 1e-6
"""How much of a layer's change may differ, since s B is rounded to float32."""
LARGEST_SCALE, SMALLEST_SCALE = 100.0, 1e-4
MOST_BLOCKS = 10_000
_BLOCK = re.compile(r"\.(\d+)(?=\.)")


@dataclass(frozen=True)
class Factors:
    """One layer's factors: the rank is the first dimension of A and the second of B, after the experts where there are
    any. With DoRA's `magnitude` (O,) they are not the whole change."""

    A: Tensor
    B: Tensor
    scale: float
    magnitude: Tensor | None = None
    embedding: bool = False

    @property
    def values(self) -> tuple[Tensor, ...]:
        return (self.A, self.B) if self.magnitude is None else (self.A, self.B, self.magnitude)

    @property
    def rank(self) -> int:
        return self.A.shape[1 if self.experts else 0]

    @property
    def experts(self) -> int:
        """How many experts have factors here; 0 for a layer that is no mixture's."""
        return len(self.A) if self.A.ndim == STACKED else 0

    @property
    def of_each(self) -> list[Factors]:
        """The factors of each expert, or these alone."""
        pairs = zip(self.A, self.B, strict=True)
        return [replace(self, A=A, B=B) for A, B in pairs] if self.experts else [self]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes that do not depend on the rank: experts, outputs and inputs."""
        rows = self.B.shape[:2] if self.experts else self.B.shape[:1]
        return (self.experts, *rows, *self.A.shape[2 if self.experts else 1 :])

    @property
    def finite(self) -> bool:
        return all(bool(torch.isfinite(value).all()) for value in self.values)

    def padded(self, rank: int) -> Factors:
        """Give the same change a larger rank and the scale 1."""
        missing, A, B = rank - self.rank, self.A.float(), self.B.float() * self.scale
        outer = 2 if self.experts else A.ndim
        below, beside = [0, 0] * (outer - 1) + [0, missing], [0, 0] * (min(B.ndim, outer) - 2) + [0, missing]
        return replace(self, A=F.pad(A, below), B=F.pad(B, beside), scale=1.0)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """A and scale * B in float64, each with two dimensions. Experts have theirs one by one."""
        assert not self.experts, "of_each first"
        return self.A.double().flatten(1), self.B.double().flatten(1) * self.scale


@dataclass(frozen=True)
class TokenValues:
    """Trained rows (n, d) of the tokens `ids`, in a table or a head."""

    ids: tuple[int, ...]
    values: Tensor

    def same_as(self, other: TokenValues) -> bool:
        return self.ids == other.ids and torch.equal(self.values, other.values)


@dataclass(frozen=True)
class AdapterWeights:
    settings: Mapping[str, Any]
    """adapter_config.json, as it stands."""
    factors: Mapping[str, Factors]
    """By layer, of rank 0 too."""
    heads: Mapping[str, Tensor] = field(default_factory=dict)
    """Parameters of modules that were trained whole (PEFT's modules_to_save), by name in the model."""
    tokens: Mapping[str, TokenValues] = field(default_factory=dict)
    """Rows of single tokens (PEFT's trainable_token_indices), by the path of the embedding or the head."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Paths of layers in the file that have another path in the model, with that path."""
    warnings: tuple[str, ...] = ()
    """What the reader could not check, in sentences."""
    remarks: tuple[str, ...] = ()
    """Sentences about what was assumed or changed when another tool's file was read."""

    @property
    def rank(self) -> int:
        return max((factors.rank for factors in self.factors.values()), default=0)

    @property
    def ranks(self) -> dict[str, int]:
        return {path: part.rank for path, part in self.factors.items()}

    @property
    def ranked(self) -> dict[str, Factors]:
        """Without the layers of rank 0, which change nothing and have nothing to learn with."""
        return {path: part for path, part in self.factors.items() if part.rank}

    @property
    def each(self) -> dict[str, Factors]:
        """Pairs of two matrices: those of a layer by its path, those of an expert by its number behind the path."""
        return {
            f"{path}.{number}" if part.experts else path: one
            for path, part in self.factors.items()
            for number, one in enumerate(part.of_each)
        }

    @property
    def parameters(self) -> int:
        """How many numbers are stored. AdaLoRA's singular values, one for each rank, are in B here."""
        rows = [one.values for one in self.tokens.values()]
        values = [*self.heads.values(), *rows, *(value for part in self.factors.values() for value in part.values)]
        singular = sum(self.ranks.values()) if self.settings["peft_type"] == "ADALORA" else 0
        return sum(value.numel() for value in values) + singular

    @property
    def notes(self) -> list[str]:
        """Sentences about the file that a user should read."""
        first = next(iter(self.renamed.items()), None)
        if first is None:
            return list(self.remarks)
        layers = "1 layer" if len(self.renamed) == 1 else f"{len(self.renamed)} layers"
        return [
            *self.remarks,
            f"The adapter has the names that {layers} had before transformers 5; they are read by today's names, such "
            f"as {first[1]} for {first[0]}",
        ]

    @property
    def has_experts(self) -> bool:
        return any(part.experts for part in self.factors.values())

    @property
    def is_dora(self) -> bool:
        return any(part.magnitude is not None for part in self.factors.values())

    def scaled(self, strength: float) -> AdapterWeights:
        """Multiply the change by `strength`, in B: the settings stay, and so does what engines make of them."""
        if strength == 1:
            return self
        if self.is_dora:
            refuse_scaled_dora("this adapter", strength)
        if self.tokens:
            raise AdapterError(
                "this adapter has trained rows of new tokens, which can be scaled only together with the base model's "
                "weights. Use the format merged, or strength 1."
            )
        if self.heads:
            raise AdapterError(
                "this adapter has fully trained modules (modules_to_save), which cannot be scaled; use strength 1."
            )
        factors = {
            path: replace(part, A=part.A.float(), B=part.B.float() * strength) for path, part in self.factors.items()
        }
        return replace(self, factors=factors)

    def portable(self, ranks: Sequence[int] = ()) -> AdapterWeights:
        """One rank and alpha for all layers: the largest rank, or the next of `ranks` that an engine has room for."""
        rank = next((known for known in sorted(ranks) if known >= self.rank), self.rank)
        self.refuse_tokens("that engines with a single rank and alpha read")
        if self.is_dora:
            raise AdapterError(
                "this adapter is DoRA, and engines that read a single rank and alpha do not know DoRA's magnitudes. "
                "Use the format peft or merged, or train one without adapter.dora."
            )
        uniform = {
            "r": max(rank, 1),
            "lora_alpha": max(rank, 1),
            "rank_pattern": {},
            "alpha_pattern": {},
            "use_rslora": False,
        }
        factors = {path: part.padded(rank) for path, part in self.factors.items()}
        return replace(self, settings={**self.settings, **uniform}, factors=factors)

    def refuse_tokens(self, which: str, use: str = "the format peft or merged") -> None:
        """Refuse a format that has no place for the rows of new tokens. `which` continues "no adapter"."""
        if self.tokens:
            count = max(len(one.ids) for one in self.tokens.values())
            raise AdapterError(
                f"this adapter has the trained rows of {count:,} new tokens (model.new_tokens), and no adapter {which} "
                f"has a place for them. Use {use}."
            )


def refuse_scaled_dora(name: str, strength: float) -> None:
    if strength != 1:
        raise AdapterError(
            f"{name} is DoRA, which can be scaled to strength {strength:g} only together with the base model's "
            "weights. Use the format merged, or strength 1."
        )


def check_same(first: AdapterWeights, other: AdapterWeights, folder: Path) -> None:
    """Refuse if the two do not change the same layers in the same way, but for rounding."""
    differing = _differing(first.factors, other.factors, _same)
    differing += _differing(first.heads, other.heads, torch.equal)
    differing += _differing(first.tokens, other.tokens, TokenValues.same_as)
    if differing:
        raise AdapterError(f'{folder} would differ from the adapter in "{differing[0]}". Nothing was written.')


def _differing(first: Mapping[str, Part], other: Mapping[str, Part], same: Callable[[Part, Part], bool]) -> list[str]:
    both = first.keys() & other.keys()
    return sorted(first.keys() ^ other.keys()) + [name for name in both if not same(first[name], other[name])]


def _same(first: Factors, other: Factors) -> bool:
    if first.shape != other.shape:
        return False
    magnitudes = [torch.empty(0) if part.magnitude is None else part.magnitude for part in (first, other)]
    return torch.equal(*magnitudes) and all(map(_same_change, first.of_each, other.of_each))


def _same_change(first: Factors, other: Factors) -> bool:
    (A, B), (C, D) = first.matrices(), other.matrices()
    return _norm(torch.cat([B, -D], 1), torch.cat([A, C])) <= NEAR * _norm(D, C)


def _norm(X: Tensor, Y: Tensor) -> float:
    """The Frobenius norm of X Y. Rounding may leave 1e-8 of what was subtracted where the norm is zero."""
    return math.sqrt(max(0.0, float(((X.T @ X) * (Y @ Y.T)).sum())))


def reported(weights: AdapterWeights, callback: Callback) -> AdapterWeights:
    """Tell the user what there is to know about the file of these weights, and return them."""
    for note in weights.notes:
        callback(StatusMessage(note))
    for warning in (*weights.warnings, *oddities(weights)):
        callback(WarningMessage(warning))
    return weights


def oddities(weights: AdapterWeights) -> list[str]:
    """Warnings in sentences, empty for an ordinary adapter."""
    scales = {path: part.scale for path, part in weights.factors.items() if part.rank}
    return [*_scale_warnings(scales), *_gap_warnings(weights)]


def _scale_warnings(scales: Mapping[str, float]) -> list[str]:
    absurd = {path: scale for path, scale in scales.items() if not SMALLEST_SCALE <= abs(scale) <= LARGEST_SCALE}
    if not absurd:
        return []
    path = max(absurd, key=lambda path: abs(absurd[path]))
    return [
        f'{len(absurd):,} of {len(scales):,} layers have an unusual scale, such as {absurd[path]:g} in "{path}"; '
        f"scales are {SMALLEST_SCALE:g} to {LARGEST_SCALE:g} in ordinary adapters; check lora_alpha and alpha_pattern"
    ]


def _gap_warnings(weights: AdapterWeights) -> list[str]:
    gaps = {kind: numbers for kind, numbers in missing_blocks(weights).items() if numbers}
    if not gaps:
        return []
    named = [f"{kind} in block {ranges(numbers)}" for kind, numbers in gaps.items()]
    return [
        f"the adapter has no factors for {some(named, 4)}, although it has some in the blocks before and after; they "
        "may have been lost"
    ]


def missing_blocks(weights: AdapterWeights) -> dict[str, list[int]]:
    """By kind of layer (`self_attn.q_proj`), the blocks without factors between the first and the last that has them.

    A kind that is in fewer than half of the blocks between was chosen so, as AdaLoRA does, and is left out.
    """
    blocks = dict[str, set[int]]()
    for path in weights.factors:
        match = _BLOCK.search(path)
        if match is not None and len(match[1]) < len(str(MOST_BLOCKS)):
            blocks.setdefault(path[match.end() + 1 :], set()).add(int(match[1]))
    between = {kind: set(range(min(numbers), max(numbers) + 1)) for kind, numbers in blocks.items()}
    return {
        kind: sorted(between[kind] - numbers) if len(between[kind]) < 2 * len(numbers) else []
        for kind, numbers in blocks.items()
    }
