"""A tensor that is split over the processes of a training, by its rows (sharding.py), and its part in this process.

What is not split is a whole tensor everywhere, and goes through each of these functions as it is.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, distributed, nn


def is_split(value: Tensor) -> bool:
    """Whether a tensor is one of those that are split, without importing what knows them."""
    return hasattr(value, "full_tensor")


def is_sharded(module: nn.Module) -> bool:
    return any(map(is_split, module.parameters()))


def gathered(value: Tensor) -> Tensor:
    """The whole of a sharded tensor, or of a number that was computed of one, once all processes have called this."""
    return cast(Any, value).full_tensor() if is_split(value) else value


def local_part(value: Tensor) -> Tensor:
    """The rows of a tensor that this process has; all of them where it is not split."""
    return cast(Any, value).to_local() if is_split(value) else value


def rows_of(rows: int, rank: int, size: int) -> tuple[int, int]:
    """The first and last row (exclusive) of one process."""
    each = -(-rows // size)
    return min(rows, rank * each), min(rows, (rank + 1) * each)


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """The rows of a whole tensor that this process would hold if it were split as `like` is."""
    if not is_split(like) or not full.dim():
        return full
    first, last = rows_of(like.shape[0], distributed.get_rank(), distributed.get_world_size())
    return full[first:last]


def split_as(full: Tensor, like: Tensor) -> Tensor:
    """A whole tensor split over the processes as `like` is."""
    if not is_split(like) or not full.dim():
        return full
    part = torch.empty_like(local_part(like), dtype=full.dtype).copy_(part_of(full, like))
    return joined(part, like)


def joined(local: Tensor, like: Any) -> Tensor:
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
