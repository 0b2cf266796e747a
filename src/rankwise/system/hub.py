"""Whether a name can be the hub's, what of it is here, and whether the hub can be asked. Its client is imported when it
is needed.
"""

from __future__ import annotations

import os
from glob import escape
from pathlib import Path

from rankwise.system.cache import cache_folder, marked_folder

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # before the client reads it


def could_be_hub_id(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def folder_here(name: str) -> Path | None:
    """The folder of a starter, or of a model of the hub, whose tokenizer is on this disk already."""
    if "/" not in name:
        markers = sorted((cache_folder() / "models").glob(f"{escape(name)}-*.folder"))
        return next((folder for marker in markers if (folder := marked_folder(marker)) is not None), None)
    if not could_be_hub_id(name):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "tokenizer.json")
    return Path(found).parent if isinstance(found, str) else None


def hub_answers(seconds: float = 3.0) -> bool:
    """Whether the hub can be reached at all: one short request, so that a laptop without network does not wait."""
    from huggingface_hub import constants, get_session

    if is_offline():
        return False
    try:
        answer = get_session().head(constants.ENDPOINT, timeout=seconds)
    except Exception:  # whatever the client's transport raises: each means that it cannot be reached
        return False
    return answer.status_code < 400


def is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
