"""The size of adapter_model.safetensors, from the shapes of its factors alone.

    8 bytes   length of the header, which is padded to a multiple of 8
    header    JSON: for each tensor its name, type, shape and place, in the order of the names
    numbers   of all tensors, one after another

as `adapters/formats/peft.py` writes it; a test holds the two against each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence

from rankwise.config.experts import stored_names
from rankwise.config.layer import Heads, Layer

PREFIX = "base_model.model."
NO_HEADS: Heads = {}


def size_of_file(
    ranks: Sequence[tuple[Layer, int]], heads: Heads = NO_HEADS, *, dora: bool = False, half: bool = False
) -> int:
    """In bytes. `half`: in 16 bits."""
    size, kind = (2, "F16") if half else (4, "F32")
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    experts = stored_names([layer.path for layer, _ in ranks if layer.experts])
    factors = [
        tensor for layer, rank in ranks
        for tensor in _tensors(layer, experts.get(layer.path, layer.path), rank, dora=dora)
    ]  # fmt: skip
    tensors = sorted([*factors, *((PREFIX + name, size) for name, size in heads.items())])
    for name, shape in tensors:
        begin, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + end


def _tensors(layer: Layer, name: str, rank: int, *, dora: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The ranks of all experts of one parameter lie in one tensor."""
    rank *= max(1, layer.experts)
    A, B, path = (rank, layer.inputs), (layer.outputs, rank), f"{PREFIX}{name}"
    if layer.kind == "embedding":
        yield f"{path}.lora_embedding_A", A
        yield f"{path}.lora_embedding_B", B
        return
    if layer.kernel is not None:
        A = (rank, layer.inputs // math.prod(layer.kernel), *layer.kernel)
        B = (*B, 1, 1)
    yield f"{path}.lora_A.weight", A
    yield f"{path}.lora_B.weight", B
    if dora:
        yield f"{path}.lora_magnitude_vector", (layer.outputs,)
