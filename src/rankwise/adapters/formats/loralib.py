"""State dicts of Microsoft's loralib, and of AdaLoRA's loralib, stored as safetensors.

    LoRA           path.lora_A (r, I)      path.lora_B (O, r)                        alpha / r  *  B A
    fused layer    path.lora_A (n r, I)    path.lora_B (n O / g, r)                  alpha / r  *  B_i A_i, for n parts
    AdaLoRA        path.lora_A (r, I)      path.lora_E (r, 1)     path.lora_B (O, r)    alpha / (r + 1e-5)  *  B E A

g is 3: query, key and value. loralib stores neither alpha nor which parts of a fused layer were adapted. Both are read
from the metadata in the file's header (lora_alpha, and enable_lora such as "true,false,true"). Without them alpha is
loralib's own default of 1, which is said, and a fused layer with some of its parts is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

import regex
import torch
from torch import Tensor

from rankwise.adapters.base_layers import features_of, is_host
from rankwise.adapters.formats.imported import Layers, Modules, Source, stacked
from rankwise.adapters.formats.tensors import read_header, read_tensors
from rankwise.adapters.weights import AdapterWeights, Factors

KEY = regex.compile(r"(?P<path>.+)\.(?:lora_(?P<part>[ABE])|(?P<part>ranknum))")
ALPHA, ENABLED = "lora_alpha", "enable_lora"
DEFAULT_ALPHA = 1.0
GROUPS = 3
LARGEST_ALPHA = 1e8


def read(source: Source, modules: Modules | None) -> AdapterWeights:
    metadata, layers = read_header(source.tensors).metadata, Layers(source)
    parts = grouped(read_tensors(source.tensors), layers)
    layers.refuse()
    alpha = number_in(metadata, ALPHA, layers)
    if alpha is None:
        alpha = DEFAULT_ALPHA
        layers.remarks.append(
            f"{source.tensors} does not say alpha, which loralib does not store; it is read as loralib's default of 1. "
            f"If the adapter was trained with another, add {ALPHA}=NUMBER to the command that writes the safetensors"
        )
    for path, tensors in parts.items():
        factors = _factors(path, tensors, alpha, metadata, modules, layers)
        if factors is not None:
            layers.factors[path] = factors
    return layers.over(modules)


def grouped(tensors: Mapping[str, Tensor], layers: Layers) -> dict[str, dict[str, Tensor]]:
    """The tensors of each layer by part; what is no factor is a problem."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = KEY.fullmatch(name)
        if match is None:
            layers.problems.append(f'"{name}" is not a LoRA factor; biases and other weights are not read')
        else:
            parts.setdefault(match["path"], {})[match["part"]] = tensor
    for path, known in parts.items():
        layers.problems += [f'"{path}" has no lora_{part}' for part in "AB" if part not in known]
    return parts


def number_in(metadata: Mapping[str, str], key: str, layers: Layers) -> float | None:
    """A positive number from the header's metadata; None where it is absent."""
    if (text := metadata.get(key)) is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= LARGEST_ALPHA:
        layers.problems.append(f'the metadata sets {key} to "{text}", which is not a positive number')
    return value


def _factors(
    path: str, tensors: dict[str, Tensor], alpha: float, metadata: Mapping[str, str], modules: Modules | None,
    layers: Layers,
) -> Factors | None:  # fmt: skip
    A, B = tensors["A"], tensors["B"]
    if A.ndim != 2 or B.ndim != 2 or not 0 < B.shape[1] <= A.shape[0] or A.shape[0] % B.shape[1]:
        layers.problems.append(f'"{path}" has factors of shape {tuple(A.shape)} and {tuple(B.shape)}, which do not fit')
        return None
    rank = B.shape[1]
    if "E" in tensors:
        return _triplets(path, tensors, alpha, layers)
    if A.shape[0] > rank:
        return _fused(path, (A, B), alpha / rank, metadata, modules, layers)
    module = modules.get(path) if modules is not None else None
    if isinstance(module, torch.nn.Conv2d):
        layers.problems.append(f'"{path}" is a convolution, whose factors loralib reshapes; they are not read')
        return None
    return Factors(A, B, alpha / rank)


def _triplets(path: str, tensors: dict[str, Tensor], alpha: float, layers: Layers) -> Factors | None:
    """AdaLoRA: singular values that were pruned are zero in E."""
    A, B, E = tensors["A"], tensors["B"], tensors["E"]
    count = tensors.get("ranknum")
    if tuple(E.shape) != (A.shape[0], 1) or A.shape[0] != B.shape[1] or (count is not None and count.numel() != 1):
        layers.problems.append(f'"{path}" has triplets whose shapes do not fit one another')
        return None
    rank = float(A.shape[0] if count is None else count.item())
    return Factors(A.float(), B.float() * E.float().view(1, -1), alpha / (rank + 1e-5))


def _fused(
    path: str, factors: tuple[Tensor, Tensor], scale: float, metadata: Mapping[str, str], modules: Modules | None,
    layers: Layers,
) -> Factors | None:  # fmt: skip
    """A layer that makes query, key and value under one another, each with its own factors."""
    A, B = factors
    count = A.shape[0] // B.shape[1]
    enabled = _enabled(path, count, metadata, layers)
    if enabled is None:
        return None
    if B.shape[0] % count:
        layers.problems.append(f'"{path}" has factors of shape {tuple(A.shape)} and {tuple(B.shape)}, which do not fit')
        return None
    rows = B.shape[0] // count
    module = modules.get(path) if modules is not None else None
    outputs = features_of(module)[1] if module is not None and is_host(module) else rows * len(enabled)
    if outputs != rows * len(enabled):
        layers.problems.append(f'"{path}" has {outputs:,} outputs, and its {len(enabled)} parts {rows:,} each')
        return None
    begins = [rows * at for at, one in enumerate(enabled) if one]
    pieces = zip(begins, A.chunk(count), B.chunk(count), strict=True)
    A, B = stacked([(slice(begin, begin + rows), a, b) for begin, a, b in pieces], outputs)
    return Factors(A, B, scale)


def _enabled(path: str, count: int, metadata: Mapping[str, str], layers: Layers) -> list[bool] | None:
    text = metadata.get(ENABLED)
    if text is None and count == GROUPS:
        return [True] * GROUPS
    words = [] if text is None else [word.strip().lower() for word in text.strip("[] ").split(",")]
    if words and set(words) <= {"true", "false"} and words.count("true") == count:
        return [word == "true" for word in words]
    layers.problems.append(
        f'"{path}" adapts {count} parts of a fused layer, and the metadata does not say which: '
        f'write {ENABLED} into it, such as "true,false,true" for query and value'
    )
    return None
