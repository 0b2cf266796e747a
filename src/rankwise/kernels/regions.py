"""Compiled regions: chains of elementwise operations on large tensors, fused into one pass over memory.

torch's compiler fuses them if a C++ compiler is installed. Otherwise, and in runs too short to earn back the seconds
that compiling takes, the same function runs operation by operation. The choice holds for the whole process.

A cache can be damaged, or shared. So compiled code is kept by processor, compiler and versions under its SHA-256, and a
new library first answers a known question in a process of its own.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, update_wrapper
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from rankwise.system.cache import cache_folder
from rankwise.system.files import sha256_of, temporary_folder
from rankwise.system.locks import locked_folder

CPUINFO, FEATURES = Path("/proc/cpuinfo"), ("model name", "flags", "CPU part", "Features", "isa")
FOLDER = "TORCHINDUCTOR_CACHE_DIR"
_log = logging.getLogger(__name__)
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
    """Compile each region inside the block at its first call, for tensors of any length. What torch stores is kept in
    an archive, and used from a copy that no other process changes."""
    kept = _undamaged(cache, name := f"torch-{machine()}.zip")
    with locked_folder(cache) as folder, compiled_code_in(code := folder / "code"), _as_before():
        with suppress(OSError):  # another process may just have replaced it
            if kept:
                shutil.unpack_archive(kept, code)
        code.mkdir(exist_ok=True)
        for region in REGIONS:
            region.compiled = torch.compile(region.passes, dynamic=True)
        yield
        with suppress(OSError):  # a full disk
            made = Path(shutil.make_archive(str(folder / "made"), "zip", code))
            kept.unlink(missing_ok=True) if kept else None
            made.replace(cache / f"{sha256_of(made)}-{name}")


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
def machine() -> str | None:
    """A hash of what compiled code depends on beside its source: the processor, the compiler and versions. None where
    there is no C++ compiler."""
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if (compiler := shutil.which(os.environ.get("CXX", default))) is None:
        return None
    said = subprocess.run([compiler, "--version"], capture_output=True, check=False)
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.exists() else []
    features = sorted({line for line in lines if line.startswith(FEATURES)})
    found = compiler, said.stdout, torch.__version__, sys.version, platform.machine(), platform.processor(), features
    return sha256(repr(found).encode()).hexdigest()


@cache
def compiled_library(source: str, flags: tuple[str, ...]) -> Any:
    """Functions of C++, compiled once and stored in the cache; None where there is no C++ compiler that works. One of
    them is `error`: how far the others are from a known answer."""
    try:
        if machine() is None:
            return None
        place, name = cache_folder() / "compiled", sha256(repr((machine(), source, flags)).encode()).hexdigest()
        if (library := _undamaged(place, name)) is None:
            with temporary_folder(place / name) as folder:
                program = f"""import sys; sys.path = {sys.path}
from {__name__} import compile_and_ask
compile_and_ask({source!r}, {flags!r}, {str(folder)!r}, {name!r})"""
                done = subprocess.run([sys.executable, "-"], input=program, text=True, capture_output=True, check=False)
                if done.returncode:
                    raise OSError(f"{done.stderr.strip() or 'its process ended'} ({done.returncode})".splitlines()[-1])
                library = (folder / name).replace(place / f"{sha256_of(folder / name)}-{name}")
        return ctypes.CDLL(str(library))
    except Exception as error:  # of many kinds: a compiler that fails, a folder that no code may run from
        _log.warning("Compiled code is not used, so this takes longer: %s", error)
        return None


def compile_and_ask(source: str, flags: tuple[str, ...], folder: str, name: str) -> None:
    """Compile a library, in a process that it may kill, and check its answer."""
    with compiled_code_in(Path(folder)):
        from torch._inductor.codecache import CppCodeCache  # imported late, because it takes a second

        library: Any = CppCodeCache.load(source, extra_flags=flags)
    library.error.restype = ctypes.c_double
    if not library.error() < 0.02:
        sys.exit("it computes wrong numbers")
    Path(library._name).replace(Path(folder, name))


def _undamaged(folder: Path, name: str) -> Path | None:
    """The file of this name behind its SHA-256. Whatever else has the name is removed."""
    for kept in folder.glob(f"*-{name}"):
        try:
            if kept.is_file() and kept.name == f"{sha256_of(kept)}-{name}":
                return kept
        except FileNotFoundError:  # another process has just replaced it
            continue
        _log.warning("%s is damaged. It is removed and compiled again.", kept)
        shutil.rmtree(kept) if kept.is_dir() and not kept.is_symlink() else kept.unlink(missing_ok=True)
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
