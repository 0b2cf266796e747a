"""A multipart upload as it comes over the connection, never more of it than may be stored.

`python-multipart` parses it, through starlette's parser; what is large goes into a temporary file.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from shutil import copyfileobj
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from rankwise.serving import patience
from rankwise.serving.bodies import BadRequest
from rankwise.serving.tuning.files import LARGEST_FILE

BESIDE = 2**16
"""Bytes of a request beside its file."""
PURPOSES = {
    "assistants": "this server has no assistants", "batch": "this server has no batches; ask it directly",
    "vision": "images are not read", "user_data": "files are for fine-tuning alone",
    "evals": "evaluations are made with rankwise evaluate",
}  # fmt: skip


@asynccontextmanager
async def uploaded(request: Request) -> AsyncGenerator[UploadFile, None]:
    """The file of a request whose purpose is fine-tuning. BadRequest with everything that is wrong."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "multipart/form-data":
        raise BadRequest(f"the content type is {media[:60]!r}; multipart/form-data is expected.", status=415)
    parser = MultiPartParser(request.headers, _limited(request), max_files=2, max_fields=8, max_part_size=4096)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise BadRequest(f"the upload cannot be read: {error.message}") from None
    except (KeyError, ClientDisconnect, UnicodeDecodeError):
        raise BadRequest("the upload cannot be read: it is not multipart/form-data.") from None
    try:
        yield _checked(form)
    finally:
        await form.close()


def _checked(form: Any) -> UploadFile:
    problems, files = list[str](), form.getlist("file")
    purpose = form.get("purpose")
    if len(files) != 1 or not isinstance(files[0], UploadFile):
        problems.append('exactly one "file" with a name is expected.')
    if purpose in PURPOSES:
        problems.append(f'"purpose" is {purpose}: {PURPOSES[purpose]}. Use fine-tune.')
    elif purpose != "fine-tune":
        problems.append(f'"purpose" is {str(purpose)[:40]!r}; fine-tune is expected.')
    for name in dict.fromkeys(form):
        if name.startswith("expires_after"):
            problems.append(f'"{name[:60]}" has no effect here: files stay until they are deleted. Leave it out.')
        elif name not in ("file", "purpose"):
            problems.append(f'unknown field "{name[:60]}".')
    if problems:
        raise BadRequest(*problems, parameter="file" if '"file"' in problems[0] else "purpose")
    return files[0]


def filling(file: UploadFile) -> Callable[[Path], None]:
    """How its content is written to a path."""

    def fill(path: Path) -> None:
        file.file.seek(0)
        with path.open("wb") as stored:
            copyfileobj(file.file, stored, 2**20)

    return fill


async def _limited(request: Request) -> AsyncGenerator[bytes, None]:
    size, stream = 0, aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(patience.BETWEEN):
                part = await anext(stream, None)
        except TimeoutError:
            raise BadRequest(f"nothing came for {patience.BETWEEN:.0f} s.", status=408, parameter="file") from None
        if part is None:
            return
        size += len(part)
        if size > LARGEST_FILE + BESIDE:
            raise BadRequest(f"the file has more than {LARGEST_FILE:,} bytes.", status=413, parameter="file")
        yield part
