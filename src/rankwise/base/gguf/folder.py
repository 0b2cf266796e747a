"""The tensors of a base model by their names in GGUF: of a folder of safetensors, or of a GGUF file as it is.

Of a folder, each tensor is read when it is asked for, turned into GGUF's form and dropped again. Of a file, a tensor
can also be copied without being decoded, and all settings, the tokenizer among them, are copied with their types.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from rankwise.base.gguf.architectures import EMBEDDING, HEAD, GgufNames
from rankwise.base.gguf.files import Copied, numbers_in, rows_in
from rankwise.base.gguf.header import read_gguf_header
from rankwise.base.tensor_files import StoredTensor, read_header
from rankwise.errors import ModelError, some
from rankwise.kernels.quantized.tensor import in_full

IGNORED = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Ends of names of tensors that old folders have and no model reads."""
_PREFIXES = ("", "model.", "transformer.")


class GgufBase(Protocol):
    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor, in the order that torch uses."""
        ...

    def value(self, name: str) -> Tensor:
        """The numbers of one tensor in float32."""
        ...


class FolderBase:
    """A folder of safetensors. A head that is tied to the embedding is not a tensor of its own. The weights in
    `quantized`, by their names in the folder, stand in the place of the folder's."""

    def __init__(
        self, folder: Path, names: GgufNames, *, tied: bool, quantized: Mapping[str, Tensor] | None = None
    ) -> None:
        self._folder, self._names, self._tied, self._quantized = folder, names, tied, quantized or {}

    @cached_property
    def _places(self) -> dict[str, tuple[StoredTensor, str, tuple[int, ...]]]:
        """By the name in GGUF: where the tensor lies, its name in the model and its shape in GGUF."""
        places: dict[str, tuple[StoredTensor, str, tuple[int, ...]]] = {}
        unknown: list[str] = []
        headers = (read_header(file)[0] for file in sorted(self._folder.glob("*.safetensors")))
        for key, stored in chain(*(sorted(header.items()) for header in headers)):
            if key.endswith(IGNORED):
                continue
            paths = (f"{prefix}{key}" for prefix in _PREFIXES)
            parameter, name = next(((one, name) for one in paths if (name := self._names.of(one))), ("", None))
            if name is None:
                unknown.append(key)
            elif name != HEAD or not self._tied:
                shape = torch.empty(stored.shape, device="meta")
                places[name] = (stored, parameter, tuple(self._names.stored(parameter, shape).shape))
        if unknown:
            raise ModelError(
                f"{self._folder} has {len(unknown)} tensors that GGUF has no place for in a "
                f"{self._names.architecture.name} model: {some(unknown, 4)}. Use --format merged."
            )
        return places

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: shape for name, (_, _, shape) in self._places.items()}

    def value(self, name: str) -> Tensor:
        stored, parameter, _ = self._places[name]
        if stored.name in self._quantized:
            return self._names.stored(parameter, in_full(self._quantized[stored.name]))
        with safe_open(stored.file, framework="pt") as tensors:
            return self._names.stored(parameter, tensors.get_tensor(stored.name))


class FileBase:
    """A GGUF file."""

    def __init__(self, file: Path) -> None:
        self._file, self._header = file, read_gguf_header(file, full=True)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: self._header.shape(name) for name in self._header.tensors}

    def type(self, name: str) -> str:
        return self._header.type(name)

    def raw(self, name: str) -> np.ndarray[Any, Any]:
        """The bytes of a tensor as they are stored."""
        return rows_in(self._file, self._header, name)

    def value(self, name: str) -> Tensor:
        return numbers_in(self._file, self._header, name)

    def fields(self) -> dict[str, Copied]:
        """All settings but the architecture, which every file names first. ModelError where one is too large to be
        read, since the copy would lack it."""
        if large := self._header.kinds.keys() - self._header.settings.keys():
            raise ModelError(f"{self._file}: the setting {min(large)} is too large to be copied. Use --format merged.")
        return {
            key: Copied(self._header.kinds[key], value)
            for key, value in self._header.settings.items()
            if not key.startswith(("general.architecture", "split."))
        }

    def text(self, key: str) -> str | None:
        value = self._header.settings.get(key)
        return None if value is None else str(value)


def is_tied(base: GgufBase) -> bool:
    return EMBEDDING in base.shapes and HEAD not in base.shapes
