"""Settings that others wrote as JSON: read with a limit, and refused by name where they are none."""

from __future__ import annotations

import json
from pathlib import Path
from stat import S_ISREG
from typing import Any

from rankwise.errors import ModelError

LARGEST_CONFIG = 10_000_000


def read_json(file: Path) -> dict[str, Any]:
    try:
        held = file.stat()
        if not S_ISREG(held.st_mode):  # a pipe would be waited for
            raise ModelError(f"{file} is no ordinary file; this folder holds no model.")
        if held.st_size > LARGEST_CONFIG:
            raise ModelError(f"{file} has {held.st_size:,} bytes, too many for settings.")
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror}); this folder holds no model.") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{file} is damaged: it is not JSON.") from None
    if not isinstance(loaded, dict):
        raise ModelError(f"{file} is damaged: it holds a {type(loaded).__name__}.")
    return loaded
