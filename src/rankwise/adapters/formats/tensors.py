"""The tensors of a safetensors file that another tool wrote, checked before anything is allocated.

safetensors_header.py checks the file to its last byte. Here the types and shapes of the tensors are held against what
factors can have: floating-point numbers of at most four dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from rankwise.adapters.formats import safetensors_header
from rankwise.adapters.formats.safetensors_header import Entry
from rankwise.errors import AdapterError, some

MOST_DIMENSIONS = 4
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class Header:
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


def read_header(file: Path) -> Header:
    """Names, shapes and metadata; AdapterError where they cannot be those of an adapter."""
    entries, metadata = safetensors_header.read_header(file)
    problems = [problem for name, entry in entries.items() if (problem := _problem(name, entry))]
    if problems:
        raise AdapterError(f"{file} cannot be used: {some(problems, 8)}.")
    return Header({name: entry.shape for name, entry in entries.items()}, metadata)


def _problem(name: str, entry: Entry) -> str:
    if len(entry.shape) > MOST_DIMENSIONS:
        return f'"{name}" has the shape {some(map(str, entry.shape), 6)}, which no factor can have'
    if entry.dtype not in FLOATS:
        return f'"{name}" has the type {entry.dtype}, which is not a floating-point number'
    return ""


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file whose header was read."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is no dict
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{file} is damaged: {error}") from None
