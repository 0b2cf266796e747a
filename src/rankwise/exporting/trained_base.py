"""The numbers of a base as an adapter was trained over them: in full, or those that its quantised weights stand for.

    trained     as the adapters say: quantised where they were trained over a quantised base
    original    the weights in the base's files, which a quantised training never saw
    nf4, int8   quantised so, for an adapter that does not say how its base was stored

A change that was learned over quantised weights makes up for their errors too, so it is added to those weights and not
to the full ones. Both are written in the number format of the base's files, so the result is a model like any other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from rankwise.base.kind import ModelKind
from rankwise.base.quantized_folder import quantized_folder
from rankwise.config.models import ModelConfig, PackedFormat
from rankwise.errors import AdapterError, some
from rankwise.kernels.quantized.formats import FORMATS
from rankwise.kernels.quantized.tensor import QuantizedTensor, in_full
from rankwise.runs.records import Callback

Onto = Literal["trained", "original", "nf4", "int8"]
ONTO: tuple[str, ...] = get_args(Onto)


def format_for(onto: Onto, bases: Mapping[str, ModelConfig]) -> PackedFormat | None:
    """The packed format of the base weights that are merged onto; None for full weights. `bases` are the adapters' base
    models, by each adapter's description; AdapterError where the adapters were trained over different formats."""
    if onto in ("nf4", "int8"):
        return onto
    if onto == "original":
        return None
    formats: dict[str, PackedFormat | None] = {described: spec.packed_format for described, spec in bases.items()}
    if len(set(formats.values())) > 1:
        stored = some(f"{described} over {name or 'full weights'}" for described, name in formats.items())
        raise AdapterError(
            f"these adapters were trained over differently stored weights of their base: {stored}. --onto original "
            "merges into the full weights, and --onto nf4 or int8 into quantised ones."
        )
    return next(iter(formats.values()), None)


def quantized_weights(
    folder: Path, kind: ModelKind, name: PackedFormat | None, callback: Callback
) -> dict[str, QuantizedTensor]:
    """The quantised weights of a folder, by their names in its files; none where `name` is None."""
    state = {} if name is None else quantized_folder(folder, kind, name, callback).state
    return {key: one for key, one in state.items() if isinstance(one, QuantizedTensor)}


class TrainedBase:
    """The quantised weights of a folder, read in pieces."""

    def __init__(self, folder: Path, kind: ModelKind, name: PackedFormat | None, callback: Callback) -> None:
        self.name: PackedFormat | None = name
        self._weights = quantized_weights(folder, kind, name, callback)
        self._unpacked: tuple[str, Tensor] | None = None

    def __contains__(self, key: str) -> bool:
        return key in self._weights

    @property
    def largest(self) -> int:
        """Numbers of the largest quantised weight, which is unpacked as a whole."""
        return max((weight.numel() for weight in self._weights.values()), default=0)

    @property
    def sha256(self) -> str | None:
        """SHA-256 of all packed parts, in the order of their names; None where the base is not quantised."""
        if self.name is None:
            return None
        digest, parts = hashlib.sha256(), dict[str, Tensor]()
        for key, weight in self._weights.items():
            named = zip(FORMATS[weight.format.name].part_names, weight.parts, strict=True)
            parts |= {f"{key}:{part}": value for part, value in named}
        for key, value in sorted(parts.items()):
            digest.update(key.encode())
            digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def value(self, key: str) -> Tensor:
        """A weight in float32, in the shape of its file. The last one stays unpacked, since it is read in pieces."""
        if self._unpacked is None or self._unpacked[0] != key:
            self._unpacked = None  # before another is unpacked
            self._unpacked = (key, in_full(self._weights[key]).contiguous())
        return self._unpacked[1]
