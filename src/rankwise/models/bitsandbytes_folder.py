"""A folder whose weights bitsandbytes quantised: NF4, with or without double quantisation, and int8 by row.

    NF4     X.weight (O I / 2, 1) codes, X.weight.absmax, .quant_map, and with double quantisation .nested_absmax,
            .nested_quant_map; X.weight.quant_state.bitsandbytes__nf4 is JSON: shape, blocksize, nested_offset, ...
    int8    X.weight (O, I), X.SCB (O,) row maxima:  W = weight * SCB / 127

The parts are taken as they lie in the files. Each is checked against the others and against the model before it is
used; the levels and values in the files must be the ones that are computed with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rankwise.errors import ModelError, some
from rankwise.kernels.quantized.formats import LARGEST, Int8
from rankwise.kernels.quantized.nf4 import BLOCK, LEVELS, NF4, OUTER, NF4WithMaxima, dynamic_values
from rankwise.kernels.quantized.tensor import QuantizedTensor
from rankwise.models.kind import ModelKind
from rankwise.models.quantized_folder import QuantizedFolder
from rankwise.models.skeleton import Skeleton, skeleton

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
