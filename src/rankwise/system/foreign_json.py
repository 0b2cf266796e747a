"""Read JSON settings of other programs, with clear errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rankwise.errors import ModelError
from rankwise.system.contents import content_of


def read_json(file: Path) -> dict[str, Any]:
    loaded = read_any_json(file)
    if not isinstance(loaded, dict):
        raise ModelError(f"{file} is damaged: it contains a {type(loaded).__name__}.")
    return loaded


def read_any_json(file: Path) -> Any:
    if file.exists() and not file.is_file():  # reading a pipe would wait forever
        raise ModelError(f"{file} is not a regular file; this folder is not a model.")
    try:
        return json.loads(content_of(file).decode("utf-8"))
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror}); this folder is not a model.") from None
    except (ValueError, RecursionError):
        raise ModelError(f"{file} is damaged: it is not JSON.") from None


def read_if_sound(file: Path) -> Any:
    """None where the file is not there, or cannot be read."""
    try:
        return read_any_json(file) if file.is_file() else None
    except ModelError:
        return None
