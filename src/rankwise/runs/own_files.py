"""One of a run's own JSON files, read strictly: only a regular file of a sane size that parses as its kind."""

from __future__ import annotations

import json
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar

from pydantic import ValidationError

from rankwise.config.base import Config
from rankwise.errors import ConfigError, RunError

LARGEST_JSON = 10_000_000
_Kind = TypeVar("_Kind", bound=Config)


def read_json(path: Path, kind: type[_Kind], largest: int = LARGEST_JSON) -> _Kind:
    """One of a run's own files, or a RunError that names what is wrong with it."""
    try:
        there = path.stat()
        if not S_ISREG(there.st_mode):  # a pipe would be waited for
            raise RunError(f"{path} is not a regular file.")
        if there.st_size > largest:
            raise RunError(f"{path} has {there.st_size:,} bytes; a run's own file is never that large.")
        return kind(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RunError(f"{path} is missing: this folder is not a complete run.") from None
    except (ValueError, TypeError, RecursionError, ValidationError, OSError) as error:
        if isinstance(error, RunError):
            raise
        detail = error.problems[0] if isinstance(error, ConfigError) else type(error).__name__
        raise RunError(f"{path} is damaged or was written by another version: {detail}") from None
