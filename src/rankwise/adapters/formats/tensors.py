"""The tensors of a safetensors file that another program wrote.

Before it gives a tensor away, the safetensors library checks that all of them fill the file, each byte once. So a file
that was cut short, a pickle under another name and a download of something else are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from rankwise.adapters.formats.pickles import refuse_disguised
from rankwise.errors import AdapterError, some

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


def check_there(file: Path, missing: str) -> None:
    """AdapterError where a file cannot be opened; `missing` is the end of the sentence that it is missing."""
    if not file.is_file():  # a pipe would never end
        what = "is not a regular file." if file.exists() else f"is missing{missing}"
        raise AdapterError(f"{file} {what}")


@contextmanager
def open_tensors(file: Path, missing: str = ".") -> Iterator[Any]:
    check_there(file, missing)
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        refuse_disguised(file)
        raise AdapterError(
            f"{file} is damaged: {error}. Nothing of it was loaded; get the file again from its source."
        ) from None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All of them; AdapterError where some are no floating-point numbers."""
    with open_tensors(file) as opened:
        types = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118  it is no dict
        problems = [
            f'"{name}" has the type {kind}, which is not a floating-point number'
            for name, kind in types.items() if kind not in FLOATS
        ]  # fmt: skip
        if problems:
            raise AdapterError(f"{file} cannot be used: {some(problems, 8)}.")
        return {name: opened.get_tensor(name) for name in types}
