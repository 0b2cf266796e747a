"""The header of a safetensors file, checked to the last byte before a tensor is read.

    8 bytes   n, the length of the header, little-endian
    n bytes   JSON: for each tensor its dtype, shape and data_offsets [begin, end); texts under __metadata__
    the rest  the numbers of all tensors, without holes, overlaps or anything behind them

The safetensors library checks most of this, but keeps the last of two equal keys and accepts any letter in a key. A key
of a letter that only looks like another (`lora_А` with a Cyrillic A), a second archive behind the numbers and a header
that claims gigabytes are refused here, so no memory is asked for because of what a header claims.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.adapters.formats.pickles import refuse_disguised
from rankwise.adapters.formats.untrusted import open_regular, parse_json
from rankwise.errors import AdapterError, one_line, some

LARGEST_HEADER = 32_000_000
"""Bytes: room for the keys of 200,000 tensors."""
MOST_TENSORS = 200_000
LONGEST_KEY = 1000
MOST_DIMENSIONS = 8
SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of a number of each type."""
METADATA = "__metadata__"
_PREFIX = 8


@dataclass(frozen=True)
class Entry:
    """One tensor of a header: `begin` and `end` are bytes behind the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(file: Path, missing: str = "") -> tuple[dict[str, Entry], dict[str, str]]:
    """The entry of each tensor, by key, and the metadata. AdapterError names all that is wrong with the header."""
    with open_regular(file, missing) as (stream, size):
        start = stream.read(_PREFIX)
        length = int.from_bytes(start, "little")
        if len(start) < _PREFIX or length > size - _PREFIX:
            refuse_disguised(file, start)
            raise _damaged(file, f"its header should have {length:,} bytes, and the file has {size:,}")
        if length > LARGEST_HEADER:
            raise _damaged(file, f"its header has {length:,} bytes; {LARGEST_HEADER:,} are read at most")
        content = stream.read(length)
    if (tensors := content.count(b'"data_offsets"')) > MOST_TENSORS:  # before the time that parsing them takes
        raise _damaged(file, f"it has {tensors:,} tensors; {MOST_TENSORS:,} are read at most")
    header = parse_json(content, file)
    if not isinstance(header, dict):
        raise _damaged(file, f"its header is a {type(header).__name__}")
    metadata = header.pop(METADATA, None)  # mlx writes null
    if problem := _metadata_problem(metadata):
        raise _damaged(file, problem)
    entries = {key: _entry(key, value) for key, value in header.items()}
    problems = [entry for entry in entries.values() if isinstance(entry, str)]
    whole = {key: entry for key, entry in entries.items() if isinstance(entry, Entry)}
    problems = problems or _layout_problems(whole, size - _PREFIX - length)
    if problems:
        raise _damaged(file, some(problems, 4))
    return whole, metadata or {}


def _damaged(file: Path, problem: str) -> AdapterError:
    return AdapterError(f"{file} is damaged: {problem}. Nothing of it was loaded; get the file again from its source.")


def _metadata_problem(metadata: Any) -> str | None:
    if metadata is None or (isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())):
        return None
    return f"its {METADATA} is not a table of texts"


def _entry(key: str, value: Any) -> Entry | str:
    """The entry of one tensor, or what is wrong with it."""
    name = f'"{one_line(ascii(key)[1:-1], 80)}"'
    if not key.isascii() or not key.isprintable() or not 0 < len(key) <= LONGEST_KEY:
        return f"the key {name} is not plain ASCII text of at most {LONGEST_KEY:,} letters"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        return f"{name} is not described by dtype, shape and data_offsets"
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        return f"{name} has the type {one_line(repr(dtype))}, which is unknown"
    if not _are_sizes(shape) or len(shape) > MOST_DIMENSIONS:
        return f"{name} has the shape {one_line(repr(shape))}"
    if not _are_sizes(offsets) or len(offsets) != len(("begin", "end")):
        return f"{name} has the data_offsets {one_line(repr(offsets))}"
    begin, end = offsets
    if end - begin != math.prod(shape) * SIZES[dtype]:
        return f"{name} of type {dtype} and shape {one_line(repr(shape))} cannot have {end - begin:,} bytes"
    return Entry(dtype, tuple(shape), begin, end)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(one) is int and 0 <= one < 2**48 for one in values)


def _layout_problems(entries: dict[str, Entry], size: int) -> list[str]:
    """Whether the tensors fill the rest of the file, each byte once."""
    position = 0
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            kind = "overlaps another tensor" if entry.begin < position else "begins behind a gap"
            return [f'"{key}" {kind}']
        position = entry.end
    if position != size:
        kind = f"{size - position:,} bytes follow the tensors" if position < size else "it was cut short"
        return [f"{kind} (the tensors need {position:,} bytes and {size:,} are there)"]
    return []
