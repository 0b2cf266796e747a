"""How many of rankwise's functions and files a training passes between the command and its first backward pass.

    PYTHONPATH=src python lab/walk.py MODEL_FOLDER ROWS.jsonl [train's own flags]

A function counts once, however often it is called; lambdas and comprehensions belong to the function they stand in.
Modules that are only imported do not count. Stopped at the first call of Tensor.backward.
"""

from __future__ import annotations

import os
import sys
import tempfile
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import rankwise


class FirstBackward(BaseException):
    """Not an error: the walk is over."""


def main(model: str, rows: str, flags: list[str]) -> None:
    from rankwise.cli.main import app

    package = str(Path(rankwise.__file__).parent)
    functions: set[tuple[str, str]] = set()
    order: list[str] = []

    def walked(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(package) or code.co_name.startswith("<"):
            return
        if not code.co_flags & CO_OPTIMIZED:  # the body of a class
            return
        place = (code.co_filename.removeprefix(package + os.sep), code.co_qualname)
        if place not in functions:
            functions.add(place)
            order.append(":".join(place))

    def backward(*arguments: Any, **named: Any) -> None:
        sys.setprofile(None)
        raise FirstBackward

    torch.Tensor.backward = backward
    given = [str(Path(name).absolute()) for name in (model, rows)]
    os.chdir(tempfile.mkdtemp())
    sys.setprofile(walked)
    try:
        app(["train", "--model", given[0], "--data", given[1], "--run", "walk", "--quiet", *flags])
    except (FirstBackward, SystemExit):
        pass
    finally:
        sys.setprofile(None)
    files = {file for file, _ in functions}
    if os.environ.get("WALK"):
        print("\n".join(order))
    print(f"{len(functions)} functions in {len(files)} files")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
