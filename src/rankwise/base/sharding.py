"""A base model that is split over the processes of a training, by PyTorch's fully sharded data parallel (FSDP2).

    sharded     parameters; process r of N has rows [r n, (r + 1) n) of each, with n = ceil(rows / N)
    whole       buffers, such as those of rotary positions, and adapters, which are attached later

Each block is one group, the embedding is another, and so is the rest (last norm, output head), to which a tied
embedding belongs. Before a group computes, its weights are gathered from all processes, and let go of afterwards; so
all of them must make as many forward and backward passes (training/world.py). What was gathered has the same bits,
and so have the results.

No process ever has the whole model: it is built without memory, and each process reads its rows, tensor by tensor, from
the mapped files. Written as one file, each tensor is gathered, written, and let go of before the next: all processes go
through the tensors in the same order, and the one that has a file writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from rankwise.base.kind import ModelKind
from rankwise.base.quantized_folder import DTYPES
from rankwise.base.skeleton import Skeleton, skeleton
from rankwise.base.split import gathered, joined, rows_of
from rankwise.base.tensor_files import SINGLE, MappedFiles, StoredTensor, header_of, open_writer
from rankwise.errors import ConfigError, ModelError, some

NEEDS_PROCESSES = (
    "model.sharded (--shard) splits the base over the processes of a training, and there is only one here. Add "
    "--processes 2 or more to rankwise train, or leave it out."
)


@cache
def mesh_of(device_type: str) -> Any:
    """All processes of the training, as FSDP sees them. They make it together, so all call this at the same time."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device_type, (distributed.get_world_size(),))


def load_sharded(folder: Path, kind: ModelKind, dtype: torch.dtype, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """This process's part of a folder that was inspected, and transformers' report of what it lacks."""
    if not distributed.is_initialized() or distributed.get_world_size() < 2:
        raise ConfigError([NEEDS_PROCESSES])
    parts = skeleton(folder, kind)
    _refuse_unreadable(parts)
    module, report = type(parts.module).from_pretrained(
        None, config=parts.module.config, state_dict=_placeholders(parts, dtype), dtype=dtype, output_loading_info=True
    )
    if report["missing_keys"] or report["mismatched_keys"]:
        return module, report  # it is refused by its names, so nothing of it is read
    files = MappedFiles()
    _without_memory(module, device)
    shard(module, device)
    for name, parameter in list(module.named_parameters()):
        stored = parts.stored(name)
        assert stored is not None, "no weight is missing"
        _fill(module, name, _own_rows(parameter, files, stored))
        files.forget(stored)
    files.close()
    return module, report


def shard(module: Any, device: torch.device) -> None:
    """Split the parameters over all processes. Gradients are summed over the processes, not averaged."""
    from torch.distributed.fsdp import fully_shard
    from transformers.modeling_layers import GradientCheckpointingLayer

    mesh = mesh_of(device.type)
    module.requires_grad_(False)
    blocks = [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]
    if not blocks:
        raise ModelError(f"{type(module).__name__} has no blocks that could be gathered one by one. Leave out --shard.")
    embedding, head = module.get_input_embeddings(), module.get_output_embeddings()
    apart = [] if head is None or head.weight is embedding.weight else [embedding]
    for group in [*apart, *blocks, module]:
        sharded = fully_shard(group, mesh=mesh, reshard_after_forward=True)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo has no other


def _refuse_unreadable(parts: Skeleton) -> None:
    if parts.assembled:
        raise ModelError(
            f"{parts.folder} cannot be sharded: {some(sorted(parts.assembled), 2)} are made of several tensors of its "
            "files. Leave out --shard."
        )
    if unknown := sorted({one.dtype for one in parts.tensors.values()} - DTYPES.keys() - {"I64", "I32", "BOOL", "U8"}):
        raise ModelError(f"{parts.folder} cannot be sharded: it has weights in {some(unknown)}. Leave out --shard.")


def _placeholders(parts: Skeleton, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of the files as transformers is to see them: of a parameter, its shape alone, without memory."""
    buffers = {parts.keys[name] for name, _ in parts.module.named_buffers() if name in parts.keys}
    number = torch.zeros((), dtype=dtype)
    shapes = {name: number.expand(one.shape) for name, one in parts.tensors.items() if name not in buffers}
    return shapes | parts.mapped(buffers)


def _without_memory(module: nn.Module, device: torch.device) -> None:
    """Replace each parameter by one of the same shape without memory, those that are tied by one; and move buffers."""
    for owner in module.modules():
        for name, value in owner.named_buffers(recurse=False):
            setattr(owner, name, value.to(device))
    replaced: dict[int, nn.Parameter] = {}
    for owner, name, parameter in _places(module):
        empty = replaced.setdefault(id(parameter), nn.Parameter(torch.empty_like(parameter, device="meta"), False))
        setattr(owner, name, empty)


def _places(module: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Every attribute that is a parameter; a tied one has several."""
    return [
        (owner, name, parameter)
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False)
    ]


def _own_rows(parameter: Any, files: MappedFiles, stored: StoredTensor) -> Tensor:
    """Read this process's rows of a parameter from the files, in the parameter's dtype. FSDP chose which rows."""
    local = parameter.to_local()
    mesh = parameter.device_mesh
    first, last = rows_of(parameter.shape[0], mesh.get_local_rank(), mesh.size())
    assert local.shape == (last - first, *parameter.shape[1:]), "FSDP splits by rows, as torch.chunk does"
    rows = files.rows(stored, DTYPES[stored.dtype], first, last).view(local.shape)
    return torch.empty(local.shape, dtype=local.dtype, device=mesh.device_type).copy_(rows)


def _fill(module: nn.Module, name: str, local: Tensor) -> None:
    empty = module.get_parameter(name)
    filled = nn.Parameter(joined(local, empty), requires_grad=False)
    for owner, own, parameter in _places(module):
        if parameter is empty:
            setattr(owner, own, filled)


NAMES = {dtype: name for name, dtype in DTYPES.items()} | {
    torch.uint8: "U8", torch.bool: "BOOL", torch.int32: "I32", torch.int64: "I64"
}  # fmt: skip


def write_gathered(file: Path | None, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file of whole tensors. Without a file, this process gives its part. If the disk fails, the others
    are gathered still, so that nobody waits for it."""
    if file is None:
        for value in tensors.values():
            gathered(value)
        return
    header = header_of(
        [(name, NAMES[value.dtype], tuple(value.shape)) for name, value in tensors.items()], metadata or {}
    )
    problem: OSError | None = None
    with open_writer(file, header) as writer:
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
