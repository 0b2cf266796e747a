"""A LoRA as its two files hold it, with no model at hand: read, made portable, compared, written.

`portable` is for engines that read one rank and one alpha: R the largest rank, zeros where a layer has less,
lora_alpha = r = R, the scale of each layer in its B. Two adapters are compared layer by layer by

    |s B A - t D C|   =   sqrt(tr(X^T X Y Y^T)),   X = [s B, -t D],   Y = [A; C]

in float64, so that no change is ever laid out as a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rankwise.adapters.peft_adalora import read_triplet_ranks
from rankwise.adapters.peft_config import PeftConfig, read_config, read_settings
from rankwise.adapters.peft_factors import (
    CONFIG,
    LORA_KEY,
    WEIGHTS,
    Factors,
    factors_at,
    grouped,
    opened,
    parts_of,
    refuse,
    refuse_dora,
    refuse_infinite,
    refuse_turned_dora,
    wrong_types,
)
from rankwise.errors import AdapterError
from rankwise.system.files import published, write_json

NEAR = 1e-6
"""What rounding s B to float32 may change of a layer's change."""


@dataclass(frozen=True)
class StoredAdapter:
    settings: dict[str, Any]
    """adapter_config.json."""
    factors: dict[str, Factors]
    """By path."""
    keys: dict[str, tuple[str, ...]]
    """Of A and B in the file, and of the magnitude of a DoRA, by path."""

    @property
    def rank(self) -> int:
        return max(factors.rank for factors in self.factors.values())

    def turned(self, strength: float) -> StoredAdapter:
        """The change times `strength`, which goes into B: settings, and so what engines make of them, stay."""
        if strength == 1:
            return self
        if any(part.magnitude is not None for part in self.factors.values()):
            refuse_turned_dora("this adapter", strength)
        factors = {
            path: replace(part, A=part.A.float(), B=part.B.float() * strength) for path, part in self.factors.items()
        }
        return replace(self, factors=factors)

    def portable(self) -> StoredAdapter:
        refuse_dora("this adapter", any(part.magnitude is not None for part in self.factors.values()))
        uniform = {
            "r": self.rank,
            "lora_alpha": self.rank,
            "rank_pattern": {},
            "alpha_pattern": {},
            "use_rslora": False,
        }
        factors = {path: part.padded(self.rank) for path, part in self.factors.items()}
        return StoredAdapter(self.settings | uniform, factors, self.keys)

    def write(self, folder: Path, beside: Mapping[str, Any], fill: Callable[[Path], None] | None = None) -> None:
        """Whole or not at all, and read back before it takes its name. `beside` lies there as JSON, by file name, and
        `fill` writes what else is to lie there."""
        tensors = {
            key: tensor.contiguous()
            for path, part in self.factors.items()
            for key, tensor in zip(self.keys[path], part.values, strict=True)
        }
        with published(folder) as temporary:
            save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
            write_json(temporary / CONFIG, self.settings)
            for file, value in beside.items():
                write_json(temporary / file, value)
            if fill is not None:
                fill(temporary)
            check_alike(read_stored(temporary), self, folder)


def read_stored(folder: Path) -> StoredAdapter:
    config, file = read_config(folder / CONFIG), folder / WEIGHTS
    if not isinstance(config, PeftConfig):
        raise AdapterError(f"{folder} holds an AdaLoRA of PEFT's; only a LoRA can be rewritten without its model.")
    with opened(file) as tensors:
        pairs, problems = grouped(tensors.keys(), LORA_KEY, parts_of(config), lambda path, of_table: None, _foreign)
        for path, pair in pairs.items():
            problems += _wrong_shape(path, [tensors.get_slice(key) for key in pair], config.rank_of(path))
        problems += config.unmatched(list(pairs))
        if not pairs and not problems:
            problems.append("it holds no LoRA factor at all")
        refuse(file, problems)
        factors = {path: factors_at(path, tensors, pair, config) for path, pair in pairs.items()}
    refuse_infinite(file, factors)
    return StoredAdapter(read_settings(folder / CONFIG), factors, pairs)


def read_ranks_stored(folder: Path) -> tuple[dict[str, int], int]:
    """The rank of each layer, and how many parameters they have together; also of PEFT's AdaLoRA."""
    config = read_config(folder / CONFIG)
    if isinstance(config, PeftConfig):
        factors = read_stored(folder).factors
        return (
            {path: part.rank for path, part in factors.items()},
            sum(value.numel() for part in factors.values() for value in part.values),
        )
    return read_triplet_ranks(folder / WEIGHTS, config)


def check_alike(found: StoredAdapter, wanted: StoredAdapter, told_of: Path) -> None:
    """The same change of the same layers, but for rounding."""
    other = sorted(found.factors.keys() ^ wanted.factors.keys())
    other += [path for path in found.factors.keys() & wanted.factors.keys() if not _alike(found, wanted, path)]
    if other:
        raise AdapterError(f'{told_of} would not be the same adapter: "{other[0]}" differs. Nothing is written.')


def _alike(found: StoredAdapter, wanted: StoredAdapter, path: str) -> bool:
    one, other = found.factors[path], wanted.factors[path]
    if (one.A.shape[1:], one.B.shape[0]) != (other.A.shape[1:], other.B.shape[0]):
        return False
    A, B = _matrices(one)
    C, D = _matrices(other)
    lengths = [torch.empty(0) if part.magnitude is None else part.magnitude for part in (one, other)]
    if not torch.equal(*lengths):
        return False
    return _norm(torch.cat([B, -D], 1), torch.cat([A, C])) <= NEAR * _norm(D, C)


def _matrices(factors: Factors) -> tuple[Tensor, Tensor]:
    return factors.A.double().flatten(1), factors.B.double().flatten(1) * factors.scale


def _norm(X: Tensor, Y: Tensor) -> float:
    """Of X Y. Rounding may leave something where there is nothing: 1e-8 of what was subtracted."""
    return math.sqrt(max(0.0, float(((X.T @ X) * (Y @ Y.T)).sum())))


def _foreign(key: str) -> list[str]:
    return [f'"{key}" is no LoRA factor; an adapter may not bring other weights']


def _wrong_shape(path: str, parts: list[Any], rank: int) -> list[str]:
    A, B, *magnitude = (tuple(part.get_shape()) for part in parts)
    fits = len(A) in (2, 4) and len(B) == len(A) and (A[0], B[1]) == (rank, rank)
    if not fits or B[2:] != (1, 1)[: len(B) - 2] or magnitude not in ([], [B[:1]]):
        return [f'"{path}" has factors {" and ".join(map(str, (A, B, *magnitude)))} where its rank is {rank}']
    return wrong_types(path, parts)
