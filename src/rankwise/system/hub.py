"""The Hugging Face hub: valid names, models on this disk, and whether the hub can be reached.

The hub's client is imported only when it is needed.
"""

from __future__ import annotations

import os
from glob import escape
from pathlib import Path

from rankwise.system.cache import cache_folder, marked_folder

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # must be set before the client is imported


def could_be_hub_id(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def folder_here(name: str) -> Path | None:
    """The folder of a starter or hub model whose tokenizer is already on this disk, or None."""
    if "/" not in name:
        markers = sorted((cache_folder() / "models").glob(f"{escape(name)}-*.folder"))
        return next((folder for marker in markers if (folder := marked_folder(marker)) is not None), None)
    if not could_be_hub_id(name):
        return None
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(name, "tokenizer.json")
    return Path(file).parent if isinstance(file, str) else None


def hub_answers(seconds: float = 3.0) -> bool:
    """Whether the hub can be reached. One short request, so that a machine without network does not wait."""
    from huggingface_hub import constants, get_session

    if is_offline():
        return False
    try:
        answer = get_session().head(constants.ENDPOINT, timeout=seconds)
    except Exception:  # any error of the client's transport means that the hub cannot be reached
        return False
    return answer.status_code < 400


def is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
