"""Pickled adapters are named and refused, under whatever name they come.

A pickle is a program that runs when it is read: PyTorch's .bin, .pt, .pth and .ckpt files are pickles, and so are .pkl,
.joblib and some .npy files. rankwise opens none of them. Whoever trusts the author converts the file where running it
does no harm, by two lines of Python; the result is a safetensors file, which holds numbers and nothing else.
"""

from __future__ import annotations

import os
from pathlib import Path

from rankwise.errors import AdapterError, some

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz")
_MAGIC = ((b"PK\x03\x04", "a ZIP archive, as PyTorch's pickles are"), (b"\x93NUMPY", "a NumPy file"))
_PROTOCOL = b"\x80"
_PROTOCOLS = range(2, 6)


def conversion(file: str, to: str) -> str:
    """How to make safetensors of a pickle, for messages."""
    return (
        "If you trust its author, convert it on a machine where running it does no harm: "
        f'torch.load("{file}", weights_only=True), then safetensors.torch.save_file(tensors, "{to}")'
    )


def refuse_pickle(name: str | Path) -> None:
    """AdapterError where the name is that of a pickled file which is there."""
    path = Path(name)
    if path.suffix.lower() in SUFFIXES and os.path.isfile(path):  # noqa: PTH113  is_file raises for strange names
        raise AdapterError(
            f"{path} is a pickle, a program that would run when it is read; only safetensors files are read. "
            f"{conversion(path.name, 'adapter_model.safetensors')}. An adapter is a folder with this file and "
            "adapter_config.json."
        )


def refuse_disguised(file: Path, start: bytes) -> None:
    """AdapterError where a file that cannot be safetensors begins as a pickle or an archive does."""
    kind = next((kind for magic, kind in _MAGIC if start.startswith(magic)), None)
    if kind is None and start[:1] == _PROTOCOL and len(start) > 1 and start[1] in _PROTOCOLS:
        kind = "a pickle"
    if kind is not None:
        raise AdapterError(
            f"{file} is {kind}, and no safetensors file, whatever its name; it was not opened. "
            f"{conversion(file.name, 'new.safetensors')}."
        )


def pickles_in(folder: Path) -> list[str]:
    """Names of the pickled files in a folder."""
    try:
        return sorted(entry.name for entry in os.scandir(folder) if Path(entry.name).suffix.lower() in SUFFIXES)
    except OSError:
        return []


def instead_of(folder: Path) -> str:
    """What the message about a missing safetensors file says of pickles in its place."""
    names = [name for name in pickles_in(folder) if name != "training_args.bin"]
    if not names:
        return "; only adapters stored as safetensors are read"
    return (
        f"; only adapters stored as safetensors are read, and {some(names, 3)} is a pickle, a program that would run "
        f"when it is read. {conversion(names[0], 'adapter_model.safetensors')}"
    )
