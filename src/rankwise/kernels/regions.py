"""Chains of small operations on large tensors, each of which reads and writes all of it, as one loop over memory.

torch's compiler makes that loop where a C++ compiler is there; elsewhere, and for runs that are too short to earn back
the seconds it takes, the same function is called operation by operation. It is one choice for the whole process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class Region(Generic[P, R]):
    def __init__(self, plain: Callable[P, R]) -> None:
        self.plain = plain
        self.compiled: Callable[P, R] | None = None
        update_wrapper(self, plain)
        REGIONS.append(self)

    def __call__(self, *given: P.args, **named: P.kwargs) -> R:
        return (self.compiled or self.plain)(*given, **named)


REGIONS: list[Region[..., Any]] = []


@contextmanager
def compiled_regions(cache: Path) -> Iterator[None]:
    """Inside, each region is compiled when it is first called, for tensors of any length. What is made lies in `cache`,
    since torch would put it where everybody may write, and run it from there."""
    from torch._inductor import config  # late: a second that most runs need not spend

    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    with config.patch(compile_threads=1):  # a pool of processes would cost more than it saves
        try:
            for region in REGIONS:
                region.compiled = torch.compile(region.plain, dynamic=True)
            yield
        finally:
            for region in REGIONS:
                region.compiled = None
