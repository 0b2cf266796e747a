"""A GGUF file that holds a LoRA and no model: its settings, its tensors as numbers, and the names of its layers.

    blk.0.attn_q.weight.lora_a    sizes (I, r) in the file, the first running fastest:  numbers (r, I)
    blk.0.attn_q.weight.lora_b    sizes (r, O):                                          numbers (O, r)

Every tensor must lie within the file and overlap no other; its numbers are read as float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rankwise.base.gguf.files import stored_bytes
from rankwise.base.gguf.header import MAGIC, GgufHeader, read_gguf_header
from rankwise.base.gguf.tensors import check_stored
from rankwise.errors import ModelError

FLOATS = {"F32", "F16", "BF16", "Q8_0"}
"""What llama.cpp writes adapters as."""
TYPE, ADAPTER = "general.type", "adapter"


def is_gguf(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(MAGIC)) == MAGIC


def is_gguf_adapter(file: Path) -> bool:
    """Whether a GGUF file says that it is an adapter. A damaged one does not."""
    try:
        return is_gguf(file) and read_gguf_header(file).settings.get(TYPE) == ADAPTER
    except (ModelError, OSError):
        return False


def read_gguf_tensors(file: Path, header: GgufHeader) -> dict[str, Tensor]:
    """All tensors in float32, the dimension that runs fastest last."""
    from gguf import GGMLQuantizationType, dequantize

    check_stored(file, header)
    kinds = {name: GGMLQuantizationType(kind) for name, kind in header.types.items()}
    if other := [name for name, kind in kinds.items() if kind.name not in FLOATS]:
        raise ModelError(
            f"{file}: {other[0]} is stored as {kinds[other[0]].name}; adapters are read as {', '.join(sorted(FLOATS))}."
        )
    tensors, mapped = {}, np.memmap(file, mode="r")
    for name, kind in kinds.items():
        sizes = tuple(reversed(header.tensors[name]))
        begin = header.begin + header.offsets[name]
        rows = mapped[begin : begin + stored_bytes(sizes, kind.name)].reshape(*sizes[:-1], -1)
        tensors[name] = torch.from_numpy(np.array(dequantize(rows, kind), np.float32).reshape(sizes))
    return tensors


def gguf_names(architecture: str, paths: Iterable[str]) -> dict[str, str]:
    """The path of a layer in transformers' model by the name that GGUF files of this architecture have for it."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    known = {name: key for key, name in MODEL_ARCH_NAMES.items()}
    listed = list(paths)
    numbers = [int(part) for path in listed for part in path.split(".") if part.isdecimal()]
    names = get_tensor_name_map(known.get(architecture, MODEL_ARCH.LLAMA), max(numbers, default=0) + 1)
    return {name: path for path in listed if (name := names.get_name(path)) is not None}
