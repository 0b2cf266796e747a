"""The Hugging Face hub: valid names, models on this disk, and whether the hub can be reached.

The hub's client is imported only when it is needed. Where the hub may not be asked, the package index may not be asked
either: nothing of a name leaves the machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from glob import escape
from pathlib import Path

from rankwise.system.cache import cache_folder, marked_folder

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # must be set before the client is imported
NO_NETWORK = {"RANKWISE_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
"""Environment of a process that may ask neither hub nor package index; the second is for the hub's own libraries."""
_may_ask = ContextVar("may_ask", default=True)


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
    file = cached_file(name, "tokenizer.json") if could_be_hub_id(name) else None
    return None if file is None else file.parent


def cached_file(name: str, file: str, revision: str | None = None) -> Path | None:
    """A file of a hub model that was downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, file, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


@contextmanager
def hub_may_be_asked(allowed: bool) -> Iterator[None]:
    """Whether what is done inside, in this thread and in those that `run_in_threadpool` takes, may ask for names."""
    token = _may_ask.set(allowed)
    try:
        yield
    finally:
        _may_ask.reset(token)


def is_forbidden() -> bool:
    """Whether neither hub nor package index may be asked."""
    return not _may_ask.get() or os.environ.get("RANKWISE_OFFLINE") == "1"


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
    return is_forbidden() or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def why_silent() -> str:
    """Why the hub does not answer, as the end of a sentence."""
    if is_forbidden():
        return "may not be asked here"
    return "is switched off (HF_HUB_OFFLINE)" if is_offline() else "cannot be reached"
