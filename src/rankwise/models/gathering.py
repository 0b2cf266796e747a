"""Tensors that are split over processes, written as one file: each is gathered, written, and let go of before the next.

All processes go through the tensors in the same order; the one that has a file writes. If its disk fails, it gathers
the others still, so that nobody waits for it, and then says what failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankwise.models.quantized_folder import DTYPES
from rankwise.models.sharding import gathered
from rankwise.models.tensor_files import SINGLE, header_of, writing

NAMES = {dtype: name for name, dtype in DTYPES.items()} | {
    torch.uint8: "U8", torch.bool: "BOOL", torch.int32: "I32", torch.int64: "I64"
}  # fmt: skip


def write_gathered(file: Path | None, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file of whole tensors. Without a file, this process gives its part."""
    if file is None:
        for value in tensors.values():
            gathered(value)
        return
    header = header_of(
        [(name, NAMES[value.dtype], tuple(value.shape)) for name, value in tensors.items()], metadata or {}
    )
    problem: OSError | None = None
    with writing(file, header) as writer:
        for value in tensors.values():
            whole = gathered(value).cpu()
            try:
                if problem is None:
                    writer.add(whole)
            except OSError as error:
                problem = error
        if problem is not None:
            raise problem
        writer.finish()


def save_whole(module: Any, folder: Path | None) -> None:
    """The settings and weights of a split model as a folder, as transformers would write them. Without a folder, this
    process gives its part. A tied weight is there once."""
    own = {name for name, _ in module.named_parameters()}
    tied = {name for name, _ in module.named_parameters(remove_duplicate=False)} - own
    tensors = {name: value.detach() for name, value in module.state_dict().items() if name not in tied}
    if folder is not None:
        module.config.save_pretrained(folder)
    write_gathered(None if folder is None else folder / SINGLE, tensors, {"format": "pt"})
