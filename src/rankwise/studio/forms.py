"""Forms that a page sends: fields by name, of a bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.requests import Request

from rankwise.serving.bodies import BadRequest
from rankwise.serving.reading import read_content

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
    """BadRequest for anything but a form of a page."""
    content = await read_content(request, "application/x-www-form-urlencoded", LARGEST)
    try:
        written = content.decode("utf-8")
        return Form(parse_qs(written, keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict"))
    except ValueError:
        raise BadRequest("the form cannot be read.") from None
