"""The tensors of a PEFT adapter's file, each checked before it is read: whose they are, and whether they can be.

    base_model.model.<path>.lora_A.weight   (R, I)      base_model.model.<path>.lora_embedding_A   (R, V)
    base_model.model.<path>.lora_B.weight   (O, R)      base_model.model.<path>.lora_embedding_B   (O, R)
    base_model.model.<path>.lora_magnitude_vector   (O,)   of a DoRA

What is known of a layer without its model lies in the keys and shapes alone; whoever has the model asks it as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from rankwise.adapters.base_layers import features_of, is_conv2d, is_embedding, is_host, takes_dora, weight_of
from rankwise.adapters.peft_config import PeftConfig
from rankwise.errors import AdapterError, some

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
LORA_KEY = regex.compile(
    r"base_model\.model\.(?P<path>.+)\.(?:lora_(?P<part>[AB])\.weight|(?P<table>lora_embedding_)(?P<part>[AB])|lora_(?P<part>m)agnitude_vector)"
)
_BASE_KEY = regex.compile(r"base_model\.model\.(?P<path>.+?)(\.base_layer)?\.(?P<part>weight|bias)")
_FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class Factors:
    """Of one layer: A has the rank first and B has it second, whatever follows; delta = scale * B @ A.

    With DoRA's `magnitude` (O,) that is not the whole change.
    """

    A: Tensor
    B: Tensor
    scale: float
    magnitude: Tensor | None = None

    @property
    def values(self) -> tuple[Tensor, ...]:
        return (self.A, self.B) if self.magnitude is None else (self.A, self.B, self.magnitude)

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    @property
    def finite(self) -> bool:
        return all(bool(torch.isfinite(value).all()) for value in self.values)

    def padded(self, rank: int) -> Factors:
        """The same change of a larger rank and with scale 1."""
        missing, A, B = rank - self.rank, self.A.float(), self.B.float() * self.scale
        below, beside = [0, 0] * (A.ndim - 1) + [0, missing], [0, 0] * (B.ndim - 2) + [0, missing]
        return Factors(F.pad(A, below), F.pad(B, beside), 1.0)


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    if not file.is_file():
        raise AdapterError(f"{file} is missing; only adapters stored as safetensors are read.")
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{file} is damaged: {error}") from None


def refuse(file: Path, problems: list[str]) -> None:
    if problems:
        raise AdapterError(f"{file} cannot be used: {some(problems, 8)}.")


def refuse_dora(what: str, is_dora: bool) -> None:
    if is_dora:
        raise AdapterError(
            f"{what} is DoRA, and engines that read a single rank and alpha know nothing of its magnitudes. "
            "Use the format peft or merged, or train one without adapter.dora."
        )


def refuse_turned_dora(what: str, strength: float) -> None:
    if strength != 1:
        raise AdapterError(
            f"{what} is DoRA, and at strength {strength:g} it is W + {strength:g} (W' - W), which no two factors and "
            "magnitudes can tell without the base's weights. Use the format merged, or strength 1."
        )


def refuse_infinite(file: Path, factors: dict[str, Factors]) -> None:
    refuse(file, [f'"{path}" has values that are not finite' for path, found in factors.items() if not found.finite])


Fault = Callable[[str, bool], str | None]
"""A path and whether the key is an embedding's, to what is wrong with it."""


def grouped(
    keys: Iterable[str], pattern: regex.Pattern[str], parts: str, fault: Fault, foreign: Callable[[str], list[str]]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Keys by path, one for each of `parts`, where they are all there; and what is wrong with the others."""
    found: dict[str, dict[str, str]] = {}
    problems: list[str] = []
    for key in keys:
        match = pattern.fullmatch(key)
        if match is None:
            problems += foreign(key)
        elif (wrong := fault(match["path"], bool(match.groupdict().get("table")))) is not None:
            problems.append(f'"{key}" {wrong}')
        elif match["part"] not in parts:
            problems.append(f'"{key}" is DoRA\'s, and {CONFIG} does not say use_dora')
        elif match["part"] in found.setdefault(match["path"], {}):
            problems.append(f'"{key}" is the second of its kind')
        else:
            found[match["path"]][match["part"]] = key
    for path, group in found.items():
        if len(group) < len(parts):
            there, missing = (
                [_called(part) for part in parts if (part in group) is wanted] for wanted in (True, False)
            )
            problems.append(f'"{path}" has only {" and ".join(there)}, no {" and no ".join(missing)}')
    return {
        path: tuple(group[part] for part in parts) for path, group in found.items() if len(group) == len(parts)
    }, problems


def _called(part: str) -> str:
    return "lora_magnitude_vector" if part == "m" else f"lora_{part}"


def fault_in(modules: dict[str, nn.Module], *, dora: bool = False) -> Fault:
    def fault(path: str, of_table: bool) -> str | None:
        if path not in modules or not is_host(modules[path]):
            return "is for a layer that this model does not have"
        if of_table != is_embedding(modules[path]):
            return f"is of the wrong kind for a {type(modules[path]).__name__}"
        if dora and not takes_dora(modules[path]):
            return f"is DoRA's for a {type(modules[path]).__name__}, which is not supported"
        return None

    return fault


def foreign_to(modules: dict[str, nn.Module], tensors: Any) -> Callable[[str], list[str]]:
    """PEFT stores the table and the head beside an adapted embedding: harmless if they are the base's own."""

    def foreign(key: str) -> list[str]:
        dumped = _BASE_KEY.fullmatch(key)
        base = getattr(modules.get(dumped["path"]), dumped["part"], None) if dumped else None
        if isinstance(base, Tensor):
            stored = tensors.get_tensor(key)
            if stored.shape == base.shape and torch.equal(stored.to(base), base):
                return []
        return [f'"{key}" is no LoRA factor; an adapter may not bring other weights']

    return foreign


def wrong_types(path: str, parts: list[Any]) -> list[str]:
    types = [part.get_dtype() for part in parts]
    return [] if set(types) <= _FLOATS else [f'"{path}" has factors of type {" and ".join(types)}']


def read_factors(file: Path, modules: dict[str, nn.Module], config: PeftConfig) -> dict[str, Factors]:
    """A LoRA's factors for the layers of a model, in the model's order."""
    with opened(file) as tensors:
        fault, foreign = fault_in(modules, dora=config.use_dora), foreign_to(modules, tensors)
        found, problems = grouped(tensors.keys(), LORA_KEY, parts_of(config), fault, foreign)
        pairs = {path: found[path] for path in modules if path in found}
        for path, pair in pairs.items():  # shapes are in the header: nothing is read that could not fit
            problems += _wrong_shape(path, [tensors.get_slice(key) for key in pair], config, modules[path])
        problems += config.unmatched(list(pairs))
        if not pairs and not problems:
            problems.append("it holds no LoRA factor at all")
        refuse(file, problems)
        factors = {path: factors_at(path, tensors, pair, config) for path, pair in pairs.items()}
    refuse_infinite(file, factors)
    return factors


def parts_of(config: PeftConfig) -> str:
    return "ABm" if config.use_dora else "AB"


def factors_at(path: str, tensors: Any, keys: tuple[str, ...], config: PeftConfig) -> Factors:
    rank, alpha = config.rank_of(path), config.alpha_of(path)
    scale = alpha / math.sqrt(rank) if config.use_rslora else alpha / rank
    A, B, *magnitude = map(tensors.get_tensor, keys)
    return Factors(A, B, scale, *magnitude)


def _wrong_shape(path: str, parts: list[Any], config: PeftConfig, host: nn.Module) -> list[str]:
    shapes = [tuple(part.get_shape()) for part in parts]
    rank, (inside, outside) = config.rank_of(path), features_of(host)
    wanted = [(rank, inside), (outside, rank), (outside,)][: len(parts)]
    if is_conv2d(host):
        wanted = [(rank, *weight_of(host).shape[1:]), (outside, rank, 1, 1)]
    if shapes != wanted:
        found, fitting = (" and ".join(map(str, each)) for each in (shapes, wanted))
        return [f'"{path}" has factors {found} where rank {rank} on this layer wants {fitting}']
    return wrong_types(path, parts)
