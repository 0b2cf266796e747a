"""A GGUF file that holds a LoRA and no model: its settings, its tensors as numbers, and the names of its layers.

    blk.0.attn_q.weight.lora_a    sizes (I, r) in the file, the first running fastest:  numbers (r, I)
    blk.0.attn_q.weight.lora_b    sizes (r, O):                                          numbers (O, r)

Every tensor must lie within the file and overlap no other; its numbers are read as float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from rankwise.base.gguf.files import numbers_in
from rankwise.base.gguf.header import GgufHeader, tensor_names
from rankwise.base.gguf.tensors import check_stored
from rankwise.errors import ModelError

FLOATS = {"F32", "F16", "BF16", "Q8_0"}
"""What llama.cpp writes adapters as."""


def read_gguf_tensors(file: Path, header: GgufHeader) -> dict[str, Tensor]:
    """All tensors in float32, the dimension that runs fastest last."""
    check_stored(file, header)
    types = {name: header.type(name) for name in header.tensors}
    if other := [name for name, type in types.items() if type not in FLOATS]:
        raise ModelError(
            f"{file}: {other[0]} is stored as {types[other[0]]}; adapters are read as {', '.join(sorted(FLOATS))}."
        )
    return {name: numbers_in(file, header, name) for name in types}


def gguf_names(architecture: str, paths: Iterable[str]) -> dict[str, str]:
    """The path of a layer in transformers' model by the name that GGUF files of this architecture have for it."""
    listed = list(paths)
    numbers = [int(part) for path in listed for part in path.split(".") if part.isdecimal()]
    names = tensor_names(architecture, max(numbers, default=0) + 1)
    return {name: path for path in listed if (name := names.get_name(path)) is not None}
