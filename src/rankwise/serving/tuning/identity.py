"""Ids that the server draws. What a client sends back becomes part of a path only if it has the form of an id."""

from __future__ import annotations

import re
import secrets

from rankwise.serving.bodies import BadRequest

FILE, JOB = "file", "ftjob"


def new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def checked_id(kind: str, text: str, parameter: str | None = None) -> str:
    """BadRequest (404) for what this server never gave out."""
    if not re.fullmatch(rf"{kind}-[0-9a-f]{{24}}", text):
        raise no_such(kind, text, parameter)
    return text


def no_such(kind: str, text: str, parameter: str | None = None) -> BadRequest:
    what = "file" if kind == FILE else "fine-tuning job"
    return BadRequest(f"there is no {what} {text[:60]!r}.", status=404, parameter=parameter)
