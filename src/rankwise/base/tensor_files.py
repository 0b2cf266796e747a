"""safetensors files without copies: what lies where, its bytes through a memory map, and a writer that streams.

    8 bytes (u64, little-endian): length H of the header
    H bytes of JSON: {"name": {"dtype": "BF16", "shape": [O, I], "data_offsets": [begin, end]}, ..., "__metadata__": {}}
    the tensors' bytes, begin and end counted from here

The format's own library checks a file before its header is read here: sizes, gaps and overlaps. Pages that were read
are given back after each piece, so a process that goes through a file of 5 GB has a few megabytes of it in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rankwise.errors import ModelError
from rankwise.kernels.row_pieces import row_pieces
from rankwise.system.foreign_json import read_json

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1,
    "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8,
}  # fmt: skip
"""Bytes of a number in each format that has whole bytes."""


@dataclass(frozen=True)
class StoredTensor:
    """`start` and `end` are places in the file, in bytes."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


def weight_files(folder: Path) -> list[Path]:
    """The files that a model is loaded from: those of its index, or its only one."""
    if (folder / INDEX).is_file():
        listed = read_json(folder / INDEX).get("weight_map")
        names = set(listed.values()) if isinstance(listed, dict) else set()
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ModelError(f"{folder / INDEX} is damaged: its weight_map does not name files of this folder.")
        return [folder / name for name in sorted(names)]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    return sorted(folder.glob("*.safetensors"))


def read_header(file: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors in the order of their bytes, and the file's metadata. No tensor is read."""
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is missing or damaged: {error}") from None
    with file.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        header: dict[str, Any] = json.loads(raw.read(length))
    entries = sorted(
        ((name, value) for name, value in header.items() if name != "__metadata__"),
        key=lambda entry: (entry[1]["data_offsets"], entry[0]),
    )
    begin = 8 + length
    return {
        name: StoredTensor(
            file, name, value["dtype"], tuple(value["shape"]), begin + value["data_offsets"][0],
            begin + value["data_offsets"][1],
        )
        for name, value in entries
    }, metadata  # fmt: skip


def pieces(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """First and last row (exclusive) of each piece of a tensor, whose row is everything but the first dimension."""
    rows, width = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    yield from row_pieces(rows, width)


class MappedFiles:
    """Files as memory, each mapped when it is first needed; `close` lets go of them all."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}

    def raw(self, tensor: StoredTensor, start: int = 0, end: int | None = None) -> Tensor:
        """Bytes `start` to `end` of a tensor (uint8); a view, valid until `forget` or `close`."""
        end = tensor.nbytes if end is None else end
        if start == end:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(
            self._mapped(tensor.file), dtype=torch.uint8, count=end - start, offset=tensor.start + start
        )

    def rows(self, tensor: StoredTensor, dtype: torch.dtype, first: int, last: int) -> Tensor:
        """Rows of a tensor with two dimensions, (last - first, width); a view. The file may be unaligned, which torch
        does not mind."""
        rows, width = (tensor.shape[0], math.prod(tensor.shape[1:])) if tensor.shape else (1, 1)
        assert 0 <= first <= last <= rows, "within the tensor"
        count = (last - first) * width
        if not count:
            return torch.empty(last - first, width, dtype=dtype)
        offset = tensor.start + first * width * dtype.itemsize
        return torch.frombuffer(self._mapped(tensor.file), dtype=dtype, count=count, offset=offset).view(-1, width)

    def forget(self, tensor: StoredTensor) -> None:
        """Give back the memory of what was read of this tensor; it stays in the system's cache."""
        mapped = self._mapped(tensor.file)
        if hasattr(mapped, "madvise") and tensor.nbytes:
            page = mmap.PAGESIZE
            start = tensor.start // page * page
            mapped.madvise(mmap.MADV_DONTNEED, start, min(tensor.end, len(mapped)) - start)

    def close(self) -> None:
        self._maps.clear()  # a map is closed with the last tensor that looks into it

    def _mapped(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            with file.open("rb") as opened:  # a private map: torch wants writable memory, and the file stays as it is
                self._maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[file]


@dataclass(frozen=True)
class WrittenFile:
    name: str
    bytes: int
    sha256: str


class TensorWriter:
    """One file, whose tensors are written in the order of `entries`: (name, dtype, shape)."""

    def __init__(self, file: Path, header: bytes) -> None:
        self._path, self._digest, self._bytes = file, hashlib.sha256(), 0
        self._file = file.open("wb")
        self._put(header)

    def add(self, values: Tensor) -> None:
        self._put(values.contiguous().flatten().view(torch.uint8).numpy().data)

    def finish(self) -> WrittenFile:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return WrittenFile(self._path.name, self._bytes, self._digest.hexdigest())

    def abandon(self) -> None:
        self._file.close()

    def _put(self, data: Any) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._bytes += len(data)


def header_of(entries: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The beginning of a file with these tensors, padded to eight bytes."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, dtype, shape in entries:
        size = math.prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@contextmanager
def open_writer(file: Path, header: bytes) -> Iterator[TensorWriter]:
    """A writer that is closed when the block fails; the block calls `finish`."""
    writer = TensorWriter(file, header)
    try:
        yield writer
    finally:
        writer.abandon()
