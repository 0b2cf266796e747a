"""The tensors of a safetensors file that another tool wrote, checked before anything is allocated.

safetensors_header.py checks the file to its last byte. Here the types and shapes of the tensors are held against what
factors can have: floating-point numbers of at most four dimensions.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from rankwise.adapters.formats.safetensors_header import Entry, read_header
from rankwise.errors import AdapterError, some

MOST_DIMENSIONS = 4
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


def names_in(file: Path) -> list[str]:
    """Names of the tensors; AdapterError where they cannot be those of an adapter."""
    entries, _ = read_header(file)
    problems = [problem for name, entry in entries.items() if (problem := _problem(name, entry))]
    if problems:
        raise AdapterError(f"{file} cannot be used: {some(problems, 8)}.")
    return list(entries)


def _problem(name: str, entry: Entry) -> str:
    if len(entry.shape) > MOST_DIMENSIONS:
        return f'"{name}" has the shape {some(map(str, entry.shape), 6)}, which no factor can have'
    if entry.dtype not in FLOATS:
        return f'"{name}" has the type {entry.dtype}, which is not a floating-point number'
    return ""


def read_tensors(file: Path) -> dict[str, Tensor]:
    names = names_in(file)
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{file} is damaged: {error}") from None
