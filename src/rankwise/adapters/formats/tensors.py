"""The tensors of a safetensors file that another program wrote; pickled adapters are named and refused.

Before it gives a tensor away, the safetensors library checks that all of them fill the file, each byte once. So a file
that was cut short, a pickle under another name and a download of something else are refused.

A pickle is a program that runs when it is read: PyTorch's .bin, .pt, .pth and .ckpt files are pickles, and so are .pkl,
.joblib and some .npy files. rankwise opens none of them. Whoever trusts the author rewrites the file where running it
does no harm, by one command; the result is a safetensors file, which holds numbers and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rankwise.config.base import problems_of
from rankwise.errors import AdapterError, some

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
LISTED = 8
"""Largest number of problems in one message."""


Model = TypeVar("Model", bound=BaseModel)
SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz")
"""Suffixes of files that may hold pickled objects."""


def validated(kind: type[Model], settings: Mapping[str, Any], where: str) -> Model:
    """Settings of another tool as data; AdapterError with all that is wrong."""
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        problems = "; ".join(problem.rstrip(".") for problem in problems_of(error, kind))
        raise AdapterError(f"{where}: {problems}.") from None


def check_there(file: Path, missing: str) -> None:
    """AdapterError where a file cannot be opened; `missing` is the end of the sentence that it is missing."""
    if not file.is_file():  # a pipe would never end
        what = "is not a regular file." if file.exists() else f"is missing{missing}"
        raise AdapterError(f"{file} {what}")


@contextmanager
def open_tensors(file: Path) -> Iterator[Any]:
    check_there(file, instead_of(file))
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        refuse_disguised(file)
        raise AdapterError(
            f"{file} is damaged: {error}. Nothing of it was loaded; get the file again from its source."
        ) from None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All of them; AdapterError where some are no floating-point numbers, but for a rank, which may be a whole one."""
    with open_tensors(file) as opened:
        types = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118  it is no dict
        refuse(file, [
            f'"{name}" has the type {kind}, which is not a floating-point number'
            for name, kind in types.items() if kind not in FLOATS and not name.endswith(".ranknum")
        ])  # fmt: skip
        return {name: opened.get_tensor(name) for name in types}


def refuse(file: Path, problems: Sequence[str]) -> None:
    """AdapterError with all that is wrong with a file, if anything is."""
    if problems:
        raise AdapterError(f"{file} cannot be used: {some(problems, LISTED)}.")


REWRITE = (
    "import sys, torch; from safetensors.torch import save_file; "
    "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
    "save_file({k: v.contiguous().clone() for k, v in d.items()}, sys.argv[2])"
)
REWRITE_ARRAYS = (
    "import sys, numpy; from safetensors.numpy import save_file; "
    "save_file(dict(numpy.load(sys.argv[1], allow_pickle=False)), sys.argv[2])"
)
_MAGIC = ((b"PK\x03\x04", "a ZIP archive, as PyTorch's pickles are"), (b"\x93NUMPY", "a NumPy file"))
_PROTOCOL = b"\x80"
_PROTOCOLS = range(2, 6)


def refuse_pickle(name: str | Path) -> None:
    """AdapterError where the name is that of a pickled file which is there."""
    path = Path(name)
    if os.path.isfile(path) and (path.suffix.lower() in SUFFIXES or _kind(_start(path))):  # noqa: PTH113  strange names
        target = path.with_name(f"{path.name.partition('.')[0]}.safetensors")
        raise AdapterError(f"{path} is a pickle, a program that would run when it is read. {conversion(path, target)}")


def refuse_disguised(file: Path) -> None:
    """AdapterError where a file that cannot be safetensors begins as a pickle or an archive does."""
    start = _start(file)  # of safetensors the length of the header
    if int.from_bytes(start, "little") > file.stat().st_size and (kind := _kind(start)):
        raise AdapterError(
            f"{file} is {kind}, and no safetensors file, whatever its name; it was not opened. "
            f"{conversion(file, file.with_name('new.safetensors'))}"
        )


def conversion(file: Path, to: Path) -> str:
    """How to make safetensors of a pickle, for the end of a message."""
    code = REWRITE_ARRAYS if file.suffix.lower() == ".npz" else REWRITE
    return (
        "If you trust its author, rewrite it as safetensors on a machine where running it does no harm: "
        f'python -c "{code}" {quote(str(file))} {quote(str(to))}'
    )


def pickles_in(folder: Path) -> list[str]:
    """Names of the pickled files in a folder."""
    try:
        return sorted(entry.name for entry in os.scandir(folder) if Path(entry.name).suffix.lower() in SUFFIXES)
    except OSError:
        return []


def instead_of(file: Path) -> str:
    """What the message about a missing safetensors file says of pickles in its place."""
    names = [name for name in pickles_in(file.parent) if name != "training_args.bin"]
    if not names:
        return "; only adapters stored as safetensors are read."
    return (
        f"; only adapters stored as safetensors are read, and {some(names, 3)} is a pickle, a program that would run "
        f"when it is read. {conversion(file.with_name(names[0]), file)}"
    )


def _start(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(8)
    except OSError:
        return b""


def _kind(start: bytes) -> str | None:
    """What a file is that begins with these bytes, if that may be a pickle."""
    if start[:1] == _PROTOCOL and len(start) > 1 and start[1] in _PROTOCOLS:
        return "a pickle"
    return next((kind for magic, kind in _MAGIC if start.startswith(magic)), None)
