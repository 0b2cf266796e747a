"""Forms that a page sends: fields by name, of a bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.requests import Request

LARGEST = 1_000_000
"""Bytes of a form."""
MOST_FIELDS = 2000


@dataclass(frozen=True)
class Form:
    """Each field has all its values; a box that is not ticked has none."""

    fields: dict[str, list[str]]

    def text(self, name: str, default: str = "") -> str:
        return self.fields.get(name, [default])[0]

    def every(self, name: str) -> Sequence[str]:
        return self.fields.get(name, [])


async def read_form(request: Request) -> Form:
    """HTTPException for anything but a form of a page."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/x-www-form-urlencoded":
        raise HTTPException(415, "this address takes a form of the page")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > LARGEST:
            raise HTTPException(413, f"the form has more than {LARGEST:,} bytes")
    try:
        written = content.decode("utf-8")
        return Form(parse_qs(written, keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict"))
    except ValueError:
        raise HTTPException(400, "the form cannot be read") from None
