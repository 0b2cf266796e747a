"""Chains of small operations on large tensors, each of which reads and writes all of it, as one loop over memory.

torch's compiler makes that loop where a C++ compiler is there; elsewhere, and for runs that are too short to earn back
the seconds it takes, the same function is called operation by operation. It is one choice for the whole process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

import torch

FOLDER = "TORCHINDUCTOR_CACHE_DIR"
P = ParamSpec("P")
R = TypeVar("R")


class Region(Generic[P, R]):
    def __init__(self, plain: Callable[P, R]) -> None:
        self.plain = plain
        self.compiled: Callable[P, R] | None = None
        update_wrapper(self, plain)
        REGIONS.append(self)

    def __call__(self, *given: P.args, **named: P.kwargs) -> R:
        """The first argument is a tensor of rows. For none or one the compiler would begin again."""
        rows: Any = given[0]
        return (self.plain if self.compiled is None or len(rows) < 2 else self.compiled)(*given, **named)


REGIONS: list[Region[..., Any]] = []


@contextmanager
def compiled_regions(cache: Path) -> Iterator[None]:
    """Inside, each region is compiled when it is first called, for tensors of any length. What is made lies in `cache`,
    since torch would put it where everybody may write, and run it from there."""
    _keep_distutils()
    from torch._inductor import config  # late: a second that most runs need not spend

    before, folder = [region.compiled for region in REGIONS], os.environ.get(FOLDER)
    os.environ[FOLDER] = str(cache)
    try:
        with config.patch(compile_threads=1):  # a pool of processes would cost more than it saves
            for region in REGIONS:
                region.compiled = torch.compile(region.plain, dynamic=True)
            yield
    finally:
        for region, compiled in zip(REGIONS, before, strict=True):
            region.compiled = compiled
        os.environ.pop(FOLDER, None)
        if folder is not None:
            os.environ[FOLDER] = folder


@contextmanager
def plain_regions() -> Iterator[None]:
    """Inside, none is compiled: another number format would be compiled anew, and torch does so only a few times."""
    before = [region.compiled for region in REGIONS]
    try:
        for region in REGIONS:
            region.compiled = None
        yield
    finally:
        for region, compiled in zip(REGIONS, before, strict=True):
            region.compiled = compiled


def _keep_distutils() -> None:
    """The compiler asks setuptools where Python's headers are, and setuptools may refuse to be loaded in a process in
    which it cannot put its own distutils in place of Python's. It need not, where Python still has one."""
    if sys.version_info < (3, 12) and "setuptools" not in sys.modules:
        os.environ.setdefault("SETUPTOOLS_USE_DISTUTILS", "stdlib")
