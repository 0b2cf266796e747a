"""What torchrun says to each process that it starts, and the one sentence with which they all end.

torchrun names a process by variables of its environment (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE) and gives it a
folder for errors, which lies in one folder for all processes of a machine. The first of them that has something to say
of the end writes it there; the others say nothing.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENDED = "ended.json"
"""The name of that file."""
LAUNCHER = "RANKWISE_LAUNCHER"
"""A variable with the number of the `rankwise train --processes` that started this process and says why it ended."""


@dataclass(frozen=True)
class Launched:
    """One of several processes. Numbers count from 0; the local ones are those on this machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int


def launched() -> Launched | None:
    """None for a process that works alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    size = _number("WORLD_SIZE", 1)
    if size < 2:
        return None
    return Launched(_number("RANK", 0), size, _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1))


def processes_here() -> int:
    """How many processes share this machine's memory and cores."""
    return 1 if (own := launched()) is None else own.local_size


def is_first_to_end(problem: dict[str, Any]) -> bool:
    """Whether no other process of this machine has said why all of them end; then `problem` is what they end with."""
    if launched() is None or (file := _file()) is None:
        return True
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(json.dumps(problem))
    except FileExistsError:
        return False
    except OSError:  # a full disk: better said twice than never
        return True
    return True


def problem_of_all() -> dict[str, Any] | None:
    """What a process of this machine has said of the end, if one has."""
    file = _file() if launched() is not None else None
    return None if file is None else read_problem(file)


def read_problem(file: Path) -> dict[str, Any] | None:
    try:
        problem = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return problem if isinstance(problem, dict) else None


def _file() -> Path | None:
    own = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return None if not own or own == os.devnull else Path(own).parent.parent / ENDED


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() else default
