"""The tensors of a safetensors file that another tool wrote, checked before anything is allocated.

    8 bytes   length of the header
    header    JSON: name -> {dtype, shape, data_offsets}, and "__metadata__": name -> text
    numbers   of all tensors

The header's size, the number of tensors, their types and shapes are limited; that each tensor lies inside the file is
checked by the safetensors library, so nothing larger than the file can be read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from rankwise.errors import AdapterError, some

LARGEST_HEADER, MOST_TENSORS, MOST_DIMENSIONS = 25_000_000, 100_000, 4
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
METADATA = "__metadata__"
LENGTH = 8
"""Bytes that hold the header's length."""


@dataclass(frozen=True)
class Header:
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


def read_header(file: Path) -> Header:
    """Names, shapes and metadata; AdapterError where they cannot be those of an adapter."""
    entries = _entries(file)
    metadata = entries.pop(METADATA, None) or {}  # mlx writes null
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise AdapterError(f"{file} is damaged: the metadata in its header is not a set of texts.")
    if len(entries) > MOST_TENSORS:
        raise AdapterError(f"{file} has {len(entries):,} tensors, and at most {MOST_TENSORS:,} are read.")
    problems = [problem for name, entry in entries.items() if (problem := _problem(name, entry))]
    if problems:
        raise AdapterError(f"{file} cannot be used: {some(problems, 8)}.")
    return Header({name: tuple(entry["shape"]) for name, entry in entries.items()}, metadata)


def _entries(file: Path) -> dict[str, Any]:
    try:
        if not S_ISREG(file.stat().st_mode):  # reading a pipe would wait forever
            raise AdapterError(f"{file} is not a regular file.")
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(LENGTH), "little")
            if not 0 < length <= LARGEST_HEADER:
                raise AdapterError(
                    f"{file} is not a safetensors file: its header would have {length:,} bytes, and at most "
                    f"{LARGEST_HEADER:,} are read."
                )
            entries = json.loads(opened.read(length), object_pairs_hook=_once)
    except OSError as error:
        raise AdapterError(f"{file} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(f"{file} is not a safetensors file: its header is not JSON.") from None
    if not isinstance(entries, dict):
        raise AdapterError(f"{file} is not a safetensors file: its header is a {type(entries).__name__}.")
    return entries


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a name occurs twice")
    return entries


def _problem(name: str, entry: Any) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("shape"), list):
        return f'the header describes "{name}" without a shape'
    shape = entry["shape"]
    if len(shape) > MOST_DIMENSIONS or not all(type(size) is int and 0 <= size < 1 << 40 for size in shape):
        return f'"{name}" has the shape {some(map(str, shape), 6)}, which no factor can have'
    if entry.get("dtype") not in FLOATS:
        return f'"{name}" has the type {entry.get("dtype")}, which is not a floating-point number'
    return ""


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file whose header was read."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is no dict
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{file} is damaged: {error}") from None
