"""Compiled regions: chains of elementwise operations on large tensors, fused into one pass over memory.

torch's compiler fuses them if a C++ compiler is installed. Otherwise, and in runs too short to earn back the seconds
that compiling takes, the same function runs operation by operation. The choice holds for the whole process.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, update_wrapper
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from rankwise.system.cache import cache_folder

FOLDER = "TORCHINDUCTOR_CACHE_DIR"
P = ParamSpec("P")
R = TypeVar("R")


class CompiledRegion(Generic[P, R]):
    """`passes` computes the same as `plain`, written so that the compiler makes fewer passes over memory of it."""

    def __init__(self, plain: Callable[P, R], passes: Callable[P, R] | None = None) -> None:
        self.plain, self.passes = plain, passes or plain
        self.compiled: Callable[P, R] | None = None
        update_wrapper(self, plain)
        REGIONS.append(self)

    def __call__(self, *arguments: P.args, **named: P.kwargs) -> R:
        """Run the region on a first argument that is a tensor of rows. Below two rows the compiler would recompile."""
        rows: Any = arguments[0]
        return (self.plain if self.compiled is None or len(rows) < 2 else self.compiled)(*arguments, **named)


REGIONS: list[CompiledRegion[..., Any]] = []


@contextmanager
def compiled_regions(cache: Path) -> Iterator[None]:
    """Compile each region inside the block at its first call, for tensors of any length."""
    with compiled_code_in(cache), _as_before():
        for region in REGIONS:
            region.compiled = torch.compile(region.passes, dynamic=True)
        yield


@contextmanager
def plain_regions() -> Iterator[None]:
    """Run every region uncompiled inside the block: torch recompiles for another dtype, and only a few times."""
    with _as_before():
        for region in REGIONS:
            region.compiled = None
        yield


@contextmanager
def _as_before() -> Iterator[None]:
    """Every region is compiled, or not, as it was before the block."""
    before = [region.compiled for region in REGIONS]
    try:
        yield
    finally:
        for region, compiled in zip(REGIONS, before, strict=True):
            region.compiled = compiled


@contextmanager
def compiled_code_in(cache: Path) -> Iterator[None]:
    """Store what torch compiles inside the block in `cache`, because torch would by default store it in, and run it
    from, a folder that every user can write to. What the processor says of its instructions is believed: to see
    whether the C++ compiler knows them too, torch would first compile six small libraries, which takes longer than
    compiling ours, and would load them again in each process. Now it compiles two or three."""
    _keep_distutils()
    from torch._inductor import config  # imported late, because it takes a second

    folder = os.environ.get(FOLDER)
    os.environ[FOLDER] = str(cache)
    try:
        with config.patch({"compile_threads": 1, "cpp.vec_isa_ok": True}):  # processes would cost more than they save
            yield
    finally:
        os.environ.pop(FOLDER, None)
        if folder is not None:
            os.environ[FOLDER] = folder


NUMBERS = r"""
#include <cmath>
#include <cstdint>
#include <cstring>

template <class To, class From> static inline To same_bits(From from) {
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
static inline float exact(float x) { return x; }
static inline float exact(uint16_t x) { return same_bits<float>((uint32_t)x << 16); }
static inline void store(float x, float* y) { *y = x; }
static inline void store(float x, uint16_t* y) {
  uint32_t bits = same_bits<uint32_t>(x);
  uint16_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  *y = (bits & 0x7fffffff) > 0x7f800000 ? (uint16_t)0x7fc0 : rounded;
}
"""
"""Numbers in bfloat16, which C++ has no type for, read and written as float32."""


@cache
def compiled_library(source: str, flags: tuple[str, ...]) -> Any:
    """Functions of C++, compiled once and stored in the cache; None where there is no C++ compiler that works."""
    try:
        with compiled_code_in(cache_folder() / "compiled"):
            from torch._inductor.codecache import CppCodeCache  # imported late, because it takes a second

            return CppCodeCache.load(source, extra_flags=flags)
    except Exception:  # of many kinds: no compiler, one that fails, a folder that no code may run from
        return None


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where its numbers lie, for a function of C++; 0 for none."""
    return ctypes.c_void_p(0 if tensor is None else tensor.data_ptr())


def _keep_distutils() -> None:
    """Let setuptools use Python's own distutils where there is one. torch's compiler asks setuptools for Python's
    headers, and setuptools can fail to load if it is unable to replace an already imported distutils. It warns of this
    setting, which is no business of the user's."""
    if sys.version_info < (3, 12) and "setuptools" not in sys.modules:
        os.environ.setdefault("SETUPTOOLS_USE_DISTUTILS", "stdlib")
        with warnings.catch_warnings(), suppress(ImportError):
            warnings.filterwarnings("ignore", "Reliance on distutils")
            import_module("setuptools")
