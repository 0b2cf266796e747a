"""Read a file of pickled weights once, in a process of its own, and write its tensors as safetensors.

    python -P pickled_weights.py FILE.pth FILE.safetensors

A pickle is a program. `torch.load(weights_only=True)` runs only the few instructions that build tensors, and the
process that reads the file ends before anything uses them. safetensors sorts its tensors, so each name begins with its
position.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ARGUMENTS = 3


def read_pickled(file: Path, folder: Path) -> list[tuple[str, Tensor]]:
    """The names and tensors of `file` in its own order. A temporary file is written into `folder`."""
    from safetensors.torch import load_file

    from rankwise.errors import ModelError

    written = folder / f"{file.name}.safetensors"
    command = [sys.executable, "-P", __file__, str(file), str(written)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not written.is_file():
        lines = done.stderr.strip().splitlines() or [f"the reading process ended with code {done.returncode}"]
        raise ModelError(f"{file} cannot be read as pickled weights: {lines[-1]}")
    tensors = load_file(written)
    written.unlink()
    return [(name.partition(" ")[2], tensors[name]) for name in sorted(tensors)]


def _rewrite(source: str, target: str) -> None:
    import torch
    from safetensors.torch import save_file

    state = torch.load(source, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(one, torch.Tensor) for one in state.values()):
        raise SystemExit("it contains other things than named tensors")
    named = {f"{at:06d} {name}": tensor.contiguous().clone() for at, (name, tensor) in enumerate(state.items())}
    save_file(named, target)


if __name__ == "__main__" and len(sys.argv) == ARGUMENTS:
    _rewrite(sys.argv[1], sys.argv[2])
