"""What a file of tensors says of itself: names, types and shapes, read from its header alone.

    8 bytes length of the header | JSON {name: {dtype, shape, data_offsets}} | data

Every entry must lie inside the file and be as long as its shape asks, and the data must end where the file ends, so a
file that was cut off or was never one is told as such.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rankwise.errors import AdapterError

LARGEST_HEADER = 100_000_000
BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8,
}  # fmt: skip


def shapes_of(file: Path) -> dict[str, tuple[int, ...]]:
    """Of every tensor, by name."""
    if not file.is_file():
        raise AdapterError(f"{file} is missing; only adapters stored as safetensors are read.")
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise _damaged(file, "it has no header")
        header = stream.read(length)
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        found = {name: _checked(entry) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _damaged(file, "its header cannot be read") from None
    if max((end for _, end in found.values()), default=0) != size - 8 - length:
        raise _damaged(file, f"{size:,} bytes are not what its header says")
    return {name: shape for name, (shape, _) in found.items()}


def _checked(entry: dict[str, Any]) -> tuple[tuple[int, ...], int]:
    """A shape, and where its data end."""
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError
    if end - begin != math.prod(shape) * BITS[entry["dtype"]] // 8:
        raise ValueError
    return shape, end


def _damaged(file: Path, why: str) -> AdapterError:
    return AdapterError(f"{file} is damaged: {why}.")
