"""Writing GGUF files tensor by tensor, and reading them back by the gguf package's own reader.

No more than one tensor is in memory. After writing, each tensor is computed a second time and compared with the file:
its bytes must be those of the rounded numbers, and the numbers that the package reads from them must be near.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankwise.base.gguf.header import GgufHeader, stored_bytes
from rankwise.errors import AdapterError
from rankwise.runs.records import Callback, ProgressUpdate, silent

TYPES: Mapping[str, tuple[str, int, float]] = {
    "float32": ("F32", 0, 0.0), "float16": ("F16", 1, 2**-11), "bfloat16": ("BF16", 32, 2**-8),
    "q8_0": ("Q8_0", 7, 0.0045), "q5_1": ("Q5_1", 9, 0.05), "q5_0": ("Q5_0", 8, 0.0635), "q4_1": ("Q4_1", 3, 0.1),
    "q4_0": ("Q4_0", 2, 0.126),
}  # fmt: skip
"""By --dtype: the type of a matrix, the number of it in general.file_type, and the largest error that rounding may
make, as a share of the largest number of the tensor."""
BLOCK = 32
"""How many numbers of a row the quantised types store together."""


@dataclass(frozen=True)
class GgufTensor:
    name: str
    shape: tuple[int, ...]
    """As in torch: the last dimension lies together."""
    type: str
    """The name of a type of GGML, such as `F32` or `Q8_0`."""
    value: Callable[[], Tensor | np.ndarray[Any, Any]]
    """Computes the numbers in float32, or reads the bytes of a tensor that is copied as it is."""
    copied: bool = False

    @property
    def bytes(self) -> int:
        return stored_bytes(self.shape, self.type)


def rows_in(file: Path, header: GgufHeader, name: str) -> np.ndarray[Any, Any]:
    """The bytes of a tensor as they are stored, by rows."""
    begin, end = header.span(name)
    return np.memmap(file, mode="r")[begin:end].reshape(*header.shape(name)[:-1], -1)


def numbers_in(file: Path, header: GgufHeader, name: str) -> Tensor:
    """The numbers of a tensor in float32."""
    from gguf import GGMLQuantizationType, dequantize

    numbers = dequantize(rows_in(file, header, name), GGMLQuantizationType(header.types[name]))
    return torch.from_numpy(np.array(numbers, np.float32).reshape(header.shape(name)))


def type_for(name: str, shape: Sequence[int], wanted_type: str) -> str:
    """The type of a tensor in a file of `wanted_type`: vectors and positions stay in float32, and a row that does not
    fill whole blocks is stored as F16."""
    if len(shape) < 2 or name.startswith("position_embd"):
        return "F32"
    return "F16" if wanted_type.startswith("Q") and shape[-1] % BLOCK else wanted_type


def encoded(value: Tensor, type: str) -> np.ndarray[Any, Any]:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    return quantize(value.to(torch.float32).contiguous().numpy(), GGMLQuantizationType[type])


def write_gguf(
    file: Path, architecture: str, fields: Mapping[str, Any], tensors: Sequence[GgufTensor],
    callback: Callback = silent,
) -> None:  # fmt: skip
    """Write a file. A field's value is a number, a text or a list of one kind, or a `Copied` of another file."""
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(file, architecture)
    try:
        for key, value in fields.items():
            _add(writer, key, value)
        for tensor in tensors:
            writer.add_tensor_info(
                tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes, GGMLQuantizationType[tensor.type]
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for at, tensor in enumerate(tensors):
            value = tensor.value()
            writer.write_tensor_data(encoded(value, tensor.type) if isinstance(value, Tensor) else value)
            callback(ProgressUpdate("Writing tensors", at + 1, len(tensors), "tensors"))
        for out in writer.fout or ():
            out.flush()
            if os.fstat(out.fileno()).st_size < out.tell():
                raise OSError("not all was written")
    except OSError as error:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        raise (error if error.errno else full) from None  # numpy writes tensors, and has no number, or says nothing
    finally:
        writer.close()


@dataclass(frozen=True)
class Copied:
    """A field of another file, with its types."""

    kinds: tuple[int, ...]
    value: Any


def _add(writer: Any, key: str, value: Any) -> None:
    from gguf import GGUFValueType as Kind

    field = value if isinstance(value, Copied) else Copied(_kinds(value), value)
    if key == "general.alignment":
        writer.data_alignment = int(field.value)
    kind, *items = map(Kind, field.kinds)
    writer.add_key_value(key, field.value, kind, *items)


def _kinds(value: Any) -> tuple[int, ...]:
    """A number is written without a sign; in a list it has one."""
    from gguf import GGUFValueType as Kind

    if isinstance(value, list):
        return Kind.ARRAY, Kind.get_type(value[0] if value else "")
    kind = Kind.get_type(value)
    return (Kind.UINT32 if kind == Kind.INT32 else kind,)


def check_written(file: Path, tensors: Sequence[GgufTensor], target: Path, callback: Callback = silent) -> float:
    """Read a file back and compare it; AdapterError, which names `target`, where it differs. Returns the largest error
    of rounding, as a share of the largest number of its tensor."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(file)
    there = {tensor.name: tensor for tensor in reader.tensors}
    bounds = {name: bound for name, _, bound in TYPES.values()}
    worst, problems = 0.0, sorted(there.keys() ^ {tensor.name for tensor in tensors})
    for at, tensor in enumerate(tensors):
        stored, value = there.get(tensor.name), tensor.value()
        callback(ProgressUpdate("Comparing tensors", at + 1, len(tensors), "tensors"))
        bytes_expected = encoded(value, tensor.type) if isinstance(value, Tensor) else value
        if (
            stored is None or stored.tensor_type.name != tensor.type
            or tuple(int(size) for size in reversed(stored.shape)) != tensor.shape
            or not np.array_equal(_bytes(stored.data), _bytes(bytes_expected))
        ):  # fmt: skip
            problems.append(tensor.name)
        elif isinstance(value, Tensor):
            numbers = np.array(dequantize(stored.data, stored.tensor_type), dtype=np.float32)
            error = _error(torch.from_numpy(numbers), value)
            worst = max(worst, error)
            if not error <= bounds[tensor.type]:
                problems.append(tensor.name)
    if problems:
        raise AdapterError(
            f'{target} would differ from the trained model in "{problems[0]}". Nothing was written. Try --dtype '
            "float32."
        )
    return worst


def _bytes(data: Any) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8)


def _error(stored: Tensor, value: Tensor) -> float:
    largest = float(value.abs().max())
    return float((stored.reshape(value.shape) - value).abs().max()) / largest if largest else 0.0
