"""PEFT's AdaLoRA checkpoints as plain LoRA factors of the same change.

    base_model.model.<path>.lora_A  (R, I)    .lora_E  (R, 1)    .lora_B  (O, R)
    delta = s B diag(E) A,   s = lora_alpha / (init_r + 1e-5);  where lora_alpha <= 0, init_r takes its place

    A = A,   B = B diag(E),   layers of rank 0 left out

Saving takes out the rows that `rank_pattern` (by `<path>.lora_E`, one bool for each of init_r rows) retires, so R is
how many are true there, and init_r where there is no pattern. s is that of the model that was trained, whatever is left
of its ranks. rsLoRA and alpha_pattern have no effect on PEFT's AdaLoRA, and have none here.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import regex
from torch import nn

from rankwise.adapters.base_layers import features_of
from rankwise.adapters.peft_config import PeftAdaLoraConfig
from rankwise.adapters.peft_factors import (
    Factors,
    fault_in,
    foreign_to,
    grouped,
    opened,
    refuse,
    refuse_infinite,
    wrong_types,
)

_KEY = regex.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<part>[ABE])")
_RANK_KEY = regex.compile(r"base_model\.model\.(?P<path>.+)\.ranknum")


def read_triplets(file: Path, modules: dict[str, nn.Module], config: PeftAdaLoraConfig) -> dict[str, Factors]:
    with opened(file) as tensors:
        other = foreign_to(modules, tensors)

        def foreign(key: str) -> list[str]:
            return _wrong_rank(key, tensors, config) if _RANK_KEY.fullmatch(key) else other(key)

        found, problems = grouped(tensors.keys(), _KEY, "ABE", fault_in(modules), foreign)
        triplets = {path: found[path] for path in modules if path in found}
        ranks, wrong = config.ranks_of(list(triplets))
        problems += wrong
        for path, keys in triplets.items():
            problems += _wrong_shape(path, [tensors.get_slice(key) for key in keys], ranks[path], modules[path])
        problems += config.unmatched(list(triplets))
        if not problems and not any(ranks.values()):
            problems.append("no layer has any rank, so it changes nothing")
        refuse(file, problems)
        factors = {path: _folded(tensors, keys, config) for path, keys in triplets.items() if ranks[path]}
    refuse_infinite(file, factors)
    return factors


def read_triplet_ranks(file: Path, config: PeftAdaLoraConfig) -> tuple[dict[str, int], int]:
    """The rank of each layer, and how many parameters its triplets have, as far as both are known without the model."""

    def foreign(key: str) -> list[str]:
        return _wrong_rank(key, tensors, config) if _RANK_KEY.fullmatch(key) else [f'"{key}" is no part of a triplet']

    with opened(file) as tensors:
        found, problems = grouped(tensors.keys(), _KEY, "ABE", lambda path, of_table: None, foreign)
        ranks, wrong = config.ranks_of(list(found))
        problems += wrong + config.unmatched(list(found))
        parameters = 0
        for path, keys in found.items():
            parts = [tensors.get_slice(key) for key in keys]
            problems += wrong_types(path, parts)
            A, B, E = (tuple(part.get_shape()) for part in parts)
            rank = ranks[path]
            if len(A) < 2 or len(B) < 2 or (A[0], B[1], E) != (rank, rank, (rank, 1)):
                problems.append(f'"{path}" has triplets {A}, {B} and {E} where its rank is {ranks[path]}')
            parameters += sum(math.prod(shape) for shape in (A, B, E))
        refuse(file, problems)
    return ranks, parameters


def _folded(tensors: Any, keys: tuple[str, ...], config: PeftAdaLoraConfig) -> Factors:
    A, B, E = (tensors.get_tensor(key).float() for key in keys)
    return Factors(A, B * E.view(1, -1), config.scale)


def _wrong_rank(key: str, tensors: Any, config: PeftAdaLoraConfig) -> list[str]:
    """The rank at the start, which some versions keep with each layer and divide by."""
    kept = tensors.get_slice(key)
    if kept.get_shape() in ([], [1]) and tensors.get_tensor(key).item() == config.init_r:
        return []
    return [f'"{key}" is not the init_r of {config.init_r}']


def _wrong_shape(path: str, parts: list[Any], rank: int, host: nn.Module) -> list[str]:
    shapes = [tuple(part.get_shape()) for part in parts]
    inside, outside = features_of(host)
    wanted = [(rank, inside), (outside, rank), (rank, 1)]
    if shapes != wanted:
        found, right = (" and ".join(map(str, these)) for these in (shapes, wanted))
        return [f'"{path}" has triplets {found} where rank {rank} on this layer wants {right}']
    return wrong_types(path, parts)
