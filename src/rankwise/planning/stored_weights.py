"""How many bytes a base's weights take as they are stored, and what unpacking them costs.

Packed weights take what base/packed.py says, and those of a GGUF file the bytes that its header has. The formats are
for linear layers but the head, whose rows they can store; what else there is stays in the number format of the run. A
packed weight is unpacked for each of its products: forward, backward, and forward again in blocks under activation
checkpointing. One is unpacked at a time:

    unpacked    numbers x bytes of the number format, and for nf4 three numbers of 4 bytes for each 64
                (without bitsandbytes also two copies in float32)

Products in int8 unpack no weight but the output head. A weight that is packed otherwise gets a copy in int8 for them,
after which the pages of its file are not needed any more.

With a limit of memory, packed weights are pages of a file that are given back after each use, and so are those of a
base in full precision; then only the one that is being unpacked counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Literal

from rankwise.base.packed import BLOCK, EXACT, PACKED_PER_SECOND, packed_size
from rankwise.config.modules import Layer
from rankwise.planning.estimate import Estimate
from rankwise.planning.shape import ModelShape

Storage = Literal["none", "nf4", "int8", "file", "mapped"]
"""How the weights of linear layers are stored: in the number format of the run, packed, as a GGUF file has them, or in
full in the folder's own files."""
FOR_MAXIMA = 3
"""Copies of the block maxima in 4 bytes each while they are unpacked."""
DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
UNPACKED_PER_SECOND: Mapping[str, Estimate] = {
    "nf4": Estimate(0.5e9, 1.2e9, 2.0e9), "int8": Estimate(1.0e9, 4.0e9, 5.0e9), "file": Estimate(0.1e9, 0.3e9, 1.0e9),
    "mapped": Estimate(0.3e9, 1.5e9, 4.0e9),
}  # fmt: skip
"""Numbers that one core unpacks in a second into bfloat16, where freed memory stays in the process. Those of nf4 and
int8 are of weights of 576 x 1,536 to 4,096 x 4,096 on a busy machine; the others are estimates."""
NF4_WITHOUT_LIBRARY = Estimate(0.1e9, 0.3e9, 0.5e9)
"""A quarter of the library's: 1.4e9 to 1.9e9 where that has 4.9e9 to 7.2e9, on one core of an EPYC."""
COPY_SHARE = 4
"""The share of free memory that a copy in int8 may take where it is not asked for, as one part of so many."""
BESIDE_PACKED = "bfloat16"
"""The number format of what is not packed, where none is named."""


@dataclass(frozen=True)
class Conversion:
    """What storing the weights of a folder in fewer bits takes, once."""

    disk: int
    seconds: float


def storage_of(quantize: str, shape: ModelShape, *, given_back: bool) -> Storage:
    """`quantize` is the setting of the base model as it is loaded."""
    if quantize == "nf4" or quantize == "int8":
        return quantize
    if quantize == "auto" and shape.file_bytes:
        return "file"
    return "mapped" if given_back else "none"


def multiplied_in_int8(setting: str, shape: ModelShape, storage: Storage, usable: float) -> bool:
    """Whether a training over packed weights, on a device that is faster in int8, computes in it by
    `training.matmul`."""
    multiplied, copy = multiplied_layers(shape, storage), copied_bytes(shape, storage)
    pays = copy <= usable / COPY_SHARE and (storage != "file" or shape.file_bytes <= shape.parameters)
    return bool(multiplied) and (setting == "int8" or (setting == "auto" and pays))


def multiplied_layers(shape: ModelShape, storage: Storage) -> list[Layer]:
    """Layers that products in int8 exist for."""
    return [layer for layer in packed_layers(shape, storage) if layer.kind == "linear" and layer.path != shape.head]


def unpacked_layers(shape: ModelShape, storage: Storage) -> list[Layer]:
    """Layers whose packed weights are unpacked all the same, with products in int8."""
    multiplied = multiplied_layers(shape, storage)
    return [layer for layer in packed_layers(shape, storage) if layer not in multiplied]


def copied_bytes(shape: ModelShape, storage: Storage) -> float:
    """Bytes of the copy in int8 that products in it need."""
    copied = [] if storage == "int8" else multiplied_layers(shape, storage)
    return sum(packed_size(layer.outputs, layer.inputs, "int8") for layer in copied)


def unpacking_rate(storage: Storage) -> Estimate:
    """Numbers in a second on one core."""
    return NF4_WITHOUT_LIBRARY if storage == "nf4" and not has_library() else UNPACKED_PER_SECOND[storage]


def packed_layers(shape: ModelShape, storage: Storage) -> list[Layer]:
    """Layers whose weights are stored otherwise than in the number format of the run."""
    if storage == "none":
        return []
    own = [layer for layer in shape.layers if layer.kind in ("linear", "conv1d") and not layer.shares]
    if storage == "file":
        return [*own, *(layer for layer in shape.layers if layer.kind == "embedding")]
    fits = [layer for layer in own if layer.path != shape.head and layer.path not in shape.full_paths]
    return [layer for layer in fits if layer.inputs % BLOCK == 0] if storage == "nf4" else fits


def packed_bytes(shape: ModelShape, storage: Storage, *, int8: bool = False) -> float:
    """Bytes of the packed weights alone, with their copy for products in `int8`. Of a file without those that have
    one."""
    layers = packed_layers(shape, storage)
    stored = shape.file_bytes if storage == "file" else sum(stored_bytes(layer, storage) for layer in layers)
    if int8 and storage == "file":
        stored *= sum(map(_size, unpacked_layers(shape, storage))) / sum(map(_size, layers))
    return stored + (copied_bytes(shape, storage) if int8 else 0.0)


def rest_bytes(shape: ModelShape, storage: Storage, number: float) -> float:
    """Bytes of all weights that are not packed, with `number` bytes for each number."""
    return number * (shape.parameters - sum(_size(layer) for layer in packed_layers(shape, storage)))


def stored_bytes(layer: Layer, storage: Storage) -> int:
    """Bytes of one stored weight; an upper bound for a weight in a file, since the types there differ."""
    return packed_size(layer.outputs, layer.inputs, storage)


def unpacking_bytes(
    shape: ModelShape, storage: Storage, number: float, *, given_back: bool, int8: bool = False
) -> float:
    """Bytes that the largest packed weight takes while it is unpacked, with `given_back` also those it is unpacked
    from; 0 where none is."""
    layers = unpacked_layers(shape, storage) if int8 else packed_layers(shape, storage)
    if not layers:
        return 0.0
    largest = max(layers, key=_size)
    size = _size(largest)
    beside = 0.0
    if storage == "nf4":
        beside = FOR_MAXIMA * EXACT * size / BLOCK
    return number * size + beside + (stored_bytes(largest, storage) if given_back else 0.0)


def unpacked_numbers(shape: ModelShape, storage: Storage, *, lowest: int, recomputed: int, int8: bool = False) -> float:
    """That a micro-batch unpacks, forward and backward. Blocks below `lowest` need no backward pass, and the first
    `recomputed` of the others are computed twice forward."""
    again, shared = range(lowest, lowest + recomputed), {layer.shares for layer in shape.layers}
    return float(sum(
        _size(layer) * (1 + (layer.block is None or layer.block >= lowest) + (layer.block in again))
        for layer in (unpacked_layers if int8 else packed_layers)(shape, storage)
        if layer.kind != "embedding" or layer.path in shared  # else only rows of it are unpacked
    ))  # fmt: skip


def conversion_of(shape: ModelShape, storage: Storage) -> Conversion | None:
    """None where nothing is converted."""
    if storage not in PACKED_PER_SECOND:
        return None
    numbers = sum(_size(layer) for layer in packed_layers(shape, storage))
    return Conversion(round(packed_bytes(shape, storage)), numbers / PACKED_PER_SECOND[storage])


@cache
def has_library() -> bool:
    """Whether bitsandbytes is installed, which unpacks NF4 about four times as fast."""
    return find_spec("bitsandbytes") is not None


def _size(layer: Layer) -> int:
    return layer.inputs * layer.outputs
