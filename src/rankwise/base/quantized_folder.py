"""A folder's weights in fewer bits: converted once, tensor by tensor, and then read from the cache as they lie there.

    quantised     weights of linear layers (and GPT-2's Conv1D) whose rows the format can store
    unchanged     everything else: the output head, a classifier's head, embeddings, norms, biases, convolutions

The entry in the cache is named after the format and the content of the folder. It has as many files as the folder,
with the parts of each weight under `WEIGHT:PART`; a conversion that was interrupted leaves nothing there. What is read
from the cache or from the folder is mapped, so the system can let go of it when memory is short.

A folder that bitsandbytes quantised is read as it lies:

    NF4     X.weight (O I / 2, 1) codes, X.weight.absmax, .quant_map, and with double quantisation .nested_absmax,
            .nested_quant_map; X.weight.quant_state.bitsandbytes__nf4 is JSON: shape, blocksize, nested_offset, ...
    int8    X.weight (O, I), X.SCB (O,) row maxima:  W = weight * SCB / 127

Each part is checked against the others and against the model before it is used; the levels and values in the files
must be the ones that are computed with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rankwise.base.inspection import fingerprint
from rankwise.base.kind import ModelKind
from rankwise.base.packed import PACKED_PER_SECOND, packed_size
from rankwise.base.skeleton import Skeleton, skeleton
from rankwise.base.tensor_files import MappedFiles, StoredTensor
from rankwise.base.timm_models import head_modules
from rankwise.config.models import PackedFormat
from rankwise.errors import ModelError, some
from rankwise.kernels.linear import is_conv1d
from rankwise.kernels.quantized.formats import FORMATS, LARGEST, Int8, PackingFormat
from rankwise.kernels.quantized.given_back import InFull
from rankwise.kernels.quantized.nf4 import BLOCK, LEVELS, NF4, OUTER, NF4WithMaxima, dynamic_values
from rankwise.kernels.quantized.tensor import QuantizedTensor, unpacked
from rankwise.runs.records import Callback, StatusMessage
from rankwise.system.cache import QUANTIZED_FOLDER, SOURCE, cache_folder, mark_used
from rankwise.system.files import need_space, published, write_json

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


@dataclass(frozen=True)
class Matrix:
    """A weight that is quantised: where it is stored, and whether its file has the transpose (I, O)."""

    stored: StoredTensor
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        first, second = self.stored.shape
        return (second, first) if self.transposed else (first, second)


@dataclass(frozen=True)
class QuantizedFolder:
    module: Any
    """The model without memory for its weights."""
    state: Mapping[str, Tensor]
    """All weights, by their names in the folder."""
    entry: Path
    """Where the parts of those that are quantised lie, in files named as the folder's; of a folder that was quantised
    already, that folder."""

    @property
    def formats(self) -> set[str]:
        """The names of the formats of those that are quantised."""
        return {value.format.name for value in self.state.values() if isinstance(value, QuantizedTensor)}

    def unpacked(self) -> QuantizedFolder:
        """This folder with all weights unpacked to full precision."""
        return QuantizedFolder(self.module, {name: unpacked(value) for name, value in self.state.items()}, self.entry)


def quantized_folder(folder: Path, kind: ModelKind, name: PackedFormat, callback: Callback) -> QuantizedFolder:
    """Quantise the weights of an inspected folder, or take them from the cache. ModelError where none can be."""
    parts = skeleton(folder, kind)
    format = FORMATS[name]
    matrices, odd = _matrices(parts, format, images=kind.processing is not None)
    if not matrices:
        raise ModelError(
            f"{folder} has no linear layers whose weights can be stored as {name}, so quantising it saves nothing. "
            "Leave out --quantize."
        )
    if odd:
        callback(StatusMessage(f"not quantised, because {name} cannot store their rows: {some(odd, 3)}"))
    packed = _packed(folder, name, matrices, callback)
    state = _state(parts, matrices, packed, format)
    return QuantizedFolder(parts.module, state, packed)


def mapped_folder(folder: Path, kind: ModelKind) -> QuantizedFolder | None:
    """The weights of a folder in full, left in its files until a product needs them. None where it has no linear
    layers."""
    parts, format = skeleton(folder, kind), InFull()
    matrices, _ = _matrices(parts, format, images=kind.processing is not None)
    if not matrices:
        return None
    state = parts.mapped()
    for name, matrix in matrices.items():
        value = state[name].T if matrix.transposed else state[name]
        state[name] = QuantizedTensor(format, [value], matrix.shape, value.dtype, matrix.transposed)
    return QuantizedFolder(parts.module, state, folder)


def _matrices(parts: Skeleton, format: PackingFormat | InFull, *, images: bool) -> tuple[dict[str, Matrix], list[str]]:
    """By their names in the folder, and the names of the weights that the format cannot store."""
    whole = _not_quantized(parts, images=images)
    matrices: dict[str, Matrix] = {}
    odd = []
    for path, module in parts.module.named_modules():
        name = f"{path}.weight"
        stored = parts.tensors.get(parts.keys.get(name, ""))
        if not (type(module) is nn.Linear or is_conv1d(module)) or path in whole or stored is None:
            continue
        if stored.dtype not in DTYPES or stored.shape != tuple(module.weight.shape) or name in parts.tied:
            continue
        matrix = Matrix(stored, is_conv1d(module))
        if format.takes(matrix.shape):
            matrices[stored.name] = matrix
        else:
            odd.append(name)
    return matrices, odd


def _not_quantized(parts: Skeleton, *, images: bool) -> set[str]:
    """Paths of the linear layers that make the model's outputs."""
    module = parts.module
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    heads = tuple(head_modules(module, images=images)) if head is None else ()
    return {
        path for path, one in module.named_modules()
        if (head is not None and one is head) or any(path == name or path.startswith(f"{name}.") for name in heads)
    }  # fmt: skip


def _packed(folder: Path, name: PackedFormat, matrices: Mapping[str, Matrix], callback: Callback) -> Path:
    """The entry in the cache, made if it is missing."""
    weights = hashlib.sha256("\n".join(sorted(matrices)).encode()).hexdigest()[:8]
    entry = cache_folder() / "models" / f"{QUANTIZED_FOLDER}{name}-{fingerprint(folder)}-{weights}"
    if not entry.is_dir():
        numbers = sum(matrix.shape[0] * matrix.shape[1] for matrix in matrices.values())
        size = sum(packed_size(*matrix.shape, name) for matrix in matrices.values())
        need_space(entry, size)
        callback(StatusMessage(
            f"Storing {len(matrices):,} weights as {name}, once: {size / 1e9:.2g} GB on disk, about "
            f"{max(1, numbers / PACKED_PER_SECOND[name]):.0f} s"
        ))  # fmt: skip
        with published(entry, first_stays=True) as temporary:
            _convert(temporary, FORMATS[name], matrices)
            write_json(temporary / SOURCE, {"file": f"{folder.name}, as {name}"})
    mark_used(entry)
    return entry


def _convert(entry: Path, format: PackingFormat, matrices: Mapping[str, Matrix]) -> None:
    """One file at a time, and of each one weight at a time, so the packed parts of a file are in memory and no more."""
    files = MappedFiles()
    for file in sorted({matrix.stored.file for matrix in matrices.values()}):
        parts: dict[str, Tensor] = {}
        for name, matrix in matrices.items():
            if matrix.stored.file == file:
                packed = format.pack(_mapped(files, matrix))
                parts |= {f"{name}:{part}": value for part, value in zip(format.part_names, packed, strict=True)}
                files.forget(matrix.stored)
        save_file(parts, entry / file.name)
    files.close()


def _mapped(files: MappedFiles, matrix: Matrix) -> Tensor:
    stored = matrix.stored
    values = files.rows(stored, DTYPES[stored.dtype], 0, stored.shape[0])
    return values.T if matrix.transposed else values


def _state(parts: Skeleton, matrices: Mapping[str, Matrix], entry: Path, format: PackingFormat) -> dict[str, Tensor]:
    state = parts.mapped(parts.tensors.keys() - matrices.keys())
    for file, tensors in parts.files.items():
        if names := [name for name in tensors if name in matrices]:
            state |= _quantized(entry / file.name, names, matrices, format)
    return state


def _quantized(
    file: Path, names: list[str], matrices: Mapping[str, Matrix], format: PackingFormat
) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {
                name: QuantizedTensor(
                    format, [opened.get_tensor(f"{name}:{part}") for part in format.part_names], matrices[name].shape,
                    torch.float32, matrices[name].transposed,
                )
                for name in names
            }  # fmt: skip
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file} in the cache is damaged: {error}. Remove {file.parent} (rankwise cache), and it is made again."
        ) from None


STATE, SCALES, OF_LAYOUT = ".quant_state.bitsandbytes__", "SCB", "weight_format"


def bitsandbytes_folder(folder: Path, kind: ModelKind) -> QuantizedFolder:
    """The weights as they lie. ModelError with all parts that are missing or do not fit."""
    parts = skeleton(folder, kind)
    if hasattr(parts.module.config, "quantization_config"):
        del parts.module.config.quantization_config
    tensors = parts.mapped()
    states = {key.partition(STATE)[0]: key for key in tensors if STATE in key}
    state: dict[str, Tensor] = {}
    problems: list[str] = []
    for name, value in tensors.items():
        scales = tensors.get(f"{name.removesuffix('weight')}{SCALES}") if name.endswith(".weight") else None
        if name not in parts.names:
            continue  # a part of another
        try:
            if name in states:
                state[name] = _nf4(name, states[name], tensors, _shape(parts, name))
            elif scales is not None and value.dtype == torch.int8:
                state[name] = _int8(value, scales, tensors, name)
            else:
                state[name] = value
        except (ModelError, KeyError) as error:
            problems.append(f"{name}: {error.args[0] if isinstance(error, ModelError) else f'it lacks {error}'}")
    if problems:
        raise ModelError(f"{folder} is damaged; download it again: {some(problems, 3)}")
    return QuantizedFolder(parts.module, state, folder)


def _shape(parts: Skeleton, name: str) -> tuple[int, int]:
    parameter = parts.module.get_parameter(parts.names[name])
    rows, columns = parameter.shape
    return rows, columns


def _nf4(name: str, state: str, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> QuantizedTensor:
    settings = json.loads(bytes(tensors[state].numpy()).decode())
    rows, columns = shape
    if not state.endswith("nf4") or settings.get("quant_type") != "nf4":
        raise ModelError("it is not nf4")
    if list(settings.get("shape", ())) != [rows, columns] or settings.get("blocksize") != BLOCK or columns % BLOCK:
        raise ModelError(f"its shape {settings.get('shape')} or block size {settings.get('blocksize')} does not fit")
    codes, maxima = tensors[name], tensors[f"{name}.absmax"]
    blocks = rows * columns // BLOCK
    if codes.numel() * 2 != rows * columns or len(maxima) != blocks:
        raise ModelError("its parts do not have the size of the weight")
    _check_values(tensors[f"{name}.quant_map"], torch.tensor(LEVELS))
    codes = codes.view(torch.uint8).reshape(rows, columns // 2)
    if maxima.dtype == torch.float32:
        return QuantizedTensor(NF4WithMaxima(), [codes, maxima], shape, torch.float32)
    outer = tensors[f"{name}.nested_absmax"]
    _check_values(tensors[f"{name}.nested_quant_map"], dynamic_values(torch.device("cpu")))
    if settings.get("nested_blocksize") != OUTER or len(outer) != -(-blocks // OUTER):
        raise ModelError("its block maxima are not in blocks of 256")
    mean = torch.tensor([float(settings["nested_offset"])])
    return QuantizedTensor(NF4(), [codes, maxima, outer, mean], shape, torch.float32)


def _check_values(stored: Tensor, expected: Tensor) -> None:
    if not torch.equal(stored.float(), expected):
        raise ModelError("its levels are not the usual ones")


def _int8(numbers: Tensor, scales: Tensor, tensors: Mapping[str, Tensor], name: str) -> QuantizedTensor:
    layout = tensors.get(f"{name.removesuffix('weight')}{OF_LAYOUT}")
    if scales.shape != numbers.shape[:1] or (layout is not None and int(layout) != 0):
        raise ModelError("its row scales do not fit, or its layout is not by row")
    rows, columns = numbers.shape
    return QuantizedTensor(Int8(), [numbers, scales.float() / LARGEST], (rows, columns), torch.float32)
