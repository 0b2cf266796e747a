"""Uploaded files: `runs/.fine-tuning/files/ID/{file.json, content.jsonl, pairs.jsonl}`, each whole or not there.

`content.jsonl` is what was uploaded, byte for byte. Pairs of answers in OpenAI's form are written once more as rankwise
reads them, line by line (`pairs.jsonl`). The names of folders are ids that the server drew; a client's name for its
file is shown and nothing else.

No more of an upload is taken than may be stored. Its rows are checked as a training would read them, by the data
report, with all problems at once and their lines: OpenAI's pairs {"input": {"messages", "tools"}, "preferred_output",
"non_preferred_output"} are those of this package under other names.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shutil
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copyfileobj
from typing import Any, Literal, TypeVar, get_args

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from rankwise.base.loaded import LoadedModel
from rankwise.config.base import Config
from rankwise.config.data import DataConfig, StoppingCheck
from rankwise.config.objectives import as_pairs
from rankwise.errors import DataError, RankwiseError, ResourceError, RunError, joined_problems
from rankwise.objectives.registry import objective_named
from rankwise.rows.preparing import checked, forget, refuse_fatal
from rankwise.runs.own_files import read_json
from rankwise.serving import reading
from rankwise.serving.bodies import BadRequest
from rankwise.system.files import make_folders, published, write_json

LARGEST_FILE = 512 * 10**6
"""Bytes, as OpenAI allows them."""
MOST_FILES, MOST_BYTES = 1000, 20 * 10**9
LONGEST_NAME = 255
CONTENT, PAIRS, FACTS = "content.jsonl", "pairs.jsonl", "file.json"
Purpose = Literal["fine-tune", "fine-tune-results"]
FILE, JOB = "file", "ftjob"
FORM_BYTES = 2**16
"""Bytes of a request beside its file."""
PURPOSES = {
    "assistants": "this server has no assistants", "batch": "this server has no batches; ask it directly",
    "vision": "images are not read", "user_data": "files are for fine-tuning alone",
    "evals": "evaluations are made with rankwise evaluate",
}  # fmt: skip
OF_PAIRS = ("input", "preferred_output", "non_preferred_output")
SAYS_NOTHING = ("parallel_tool_calls",)
"""Columns of OpenAI's rows that have no effect on what is learned."""
LONGEST_MESSAGE = 20_000


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


class Content(Config):
    """What the check of the file found out."""

    rows: int = 0
    pairs: bool = False
    """Whether its rows are pairs of answers."""
    ignored: tuple[str, ...] = ()
    """Columns that have no effect on what is learned."""


class Stored(Config):
    """What has a file of facts in a folder of this server."""

    id: str
    created_at: int


_Stored = TypeVar("_Stored", bound=Stored)


def newest_first(files: Iterable[Path], kind: type[_Stored]) -> list[_Stored]:
    """What is not whole is left out."""
    found = list[_Stored]()
    for file in files:
        with suppress(RunError):
            found.append(read_json(file, kind))
    return sorted(found, key=lambda item: (item.created_at, item.id), reverse=True)


class StoredFile(Stored):
    bytes: int
    filename: str
    purpose: Purpose
    content: Content

    def as_json(self) -> dict[str, Any]:
        rest = {"object": "file", "status": "processed", "expires_at": None, "status_details": None}
        return self.model_dump(exclude={"content"}) | rest


@dataclass(frozen=True)
class Files:
    folder: Path
    """Holds the files, each in a folder of its own."""
    _changing: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def every(self) -> list[StoredFile]:
        return newest_first((folder / FACTS for folder in self.folder.glob(f"{FILE}-*")), StoredFile)

    def get(self, name: str, parameter: str | None = None) -> StoredFile:
        """BadRequest (404) where there is none."""
        try:
            return read_json(self._folder_of(name, parameter) / FACTS, StoredFile)
        except RunError:
            raise no_such(FILE, name, parameter) from None

    def content(self, name: str) -> Path:
        return self._folder_of(self.get(name).id) / CONTENT

    def training(self, file: StoredFile) -> Path:
        """What a training reads."""
        return self._folder_of(file.id) / (PAIRS if file.content.pairs else CONTENT)

    def add(
        self, filename: str, purpose: Purpose, fill: Callable[[Path], None], check: Callable[[Path], Content]
    ) -> StoredFile:
        """`fill` writes the content to a path; `check` raises where it cannot be used."""
        with self._changing:
            there = self.every()
            if len(there) >= MOST_FILES or sum(one.bytes for one in there) > MOST_BYTES:
                raise BadRequest(
                    f"this server stores {MOST_FILES:,} files and {MOST_BYTES / 1e9:.0f} GB at most. Delete some.",
                    parameter="file",
                )
            make_folders(self.folder)
            name = new_id(FILE)
            with _room(), published(self.folder / name) as folder:
                fill(folder / CONTENT)
                content = check(folder)
                stored = StoredFile(
                    id=name, bytes=(folder / CONTENT).stat().st_size, created_at=int(time.time()),
                    filename=shown_name(filename), purpose=purpose, content=content,
                )  # fmt: skip
                write_json(folder / FACTS, stored.model_dump(mode="json"))
            return stored

    def delete(self, name: str) -> None:
        """With what trainings have encoded of it."""
        folder = self._folder_of(self.get(name).id)
        forget(name)
        with self._changing:
            (folder / FACTS).unlink(missing_ok=True)  # without it, the file does not exist for any reader
            shutil.rmtree(folder, ignore_errors=True)

    def _folder_of(self, name: str, parameter: str | None = None) -> Path:
        return self.folder / checked_id(FILE, name, parameter)


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except ResourceError:
        raise BadRequest("the server's disk is full.", status=507, parameter="file") from None


def shown_name(name: str) -> str:
    """A client's name for its file, without folders and without what a terminal would act on."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(one if one.isprintable() else "?" for one in last)[:LONGEST_NAME] or "file.jsonl"


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
            async with asyncio.timeout(reading.BETWEEN):
                part = await anext(stream, None)
        except TimeoutError:
            raise BadRequest(f"nothing came for {reading.BETWEEN:.0f} s.", status=408, parameter="file") from None
        if part is None:
            return
        size += len(part)
        if size > LARGEST_FILE + FORM_BYTES:
            raise BadRequest(f"the file has more than {LARGEST_FILE:,} bytes.", status=413, parameter="file")
        yield part


def data_of(path: Path, content: Content) -> DataConfig:
    """The settings by which a training reads an uploaded file."""
    data = DataConfig(path=str(path), ignore_columns=content.ignored, held_out=0, accept=get_args(StoppingCheck))
    return as_pairs(data) if content.pairs else data


def check_rows(folder: Path, filename: str, model: LoadedModel) -> Content:
    """BadRequest with everything that is wrong."""
    path = folder / CONTENT
    try:
        pairs = _is_of_pairs(path)
        if pairs:
            (folder / PAIRS).write_text("".join(_converted(path)), encoding="utf-8")
        writing = objective_named("preference" if pairs else "causal-lm").rows.encoding(model)
        path = folder / PAIRS if pairs else path
        content = Content(pairs=pairs, ignored=() if pairs else _ignored(path))
        report = checked(data_of(path, content), writing, folder)
        refuse_fatal(report)
    except RankwiseError as error:
        message = str(error).replace(str(path), filename).replace(str(folder / CONTENT), filename)
        message = message.replace("To leave them out, use --on-bad-row skip.", "Repair them, or leave them out.")
        raise BadRequest(message[:LONGEST_MESSAGE], parameter="file") from None
    return content.model_copy(update={"rows": report.rows})


def _ignored(path: Path) -> tuple[str, ...]:
    """The columns without effect that occur in the file's rows. Lines that are no rows are skipped: they are refused
    later, with all other problems."""
    there = set[str]()
    with path.open("rb") as file:
        for line in file:
            if any(name.encode() in line for name in SAYS_NOTHING):
                with suppress(ValueError, RecursionError):
                    row = json.loads(line)
                    there.update(row if isinstance(row, dict) else ())
    return tuple(name for name in SAYS_NOTHING if name in there)


def _is_of_pairs(path: Path) -> bool:
    """By the first row, as formats are recognised everywhere."""
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and bool({"preferred_output", "non_preferred_output"} & row.keys())


def _converted(path: Path) -> Iterator[str]:
    problems = list[str]()
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield (json.dumps(_pair(json.loads(line))) if line.strip() else "") + "\n"
            except RecursionError:
                problems.append(f"{path}:{number}: the row is nested too deeply.")
            except DataError as error:
                problems.append(f"{path}:{number}: {error}")
            except ValueError:
                problems.append(f"{path}:{number}: the line is not JSON.")
    if problems:
        raise DataError(joined_problems(problems))


def _pair(row: Any) -> dict[str, Any]:
    """DataError with what is wrong, without file and line."""
    if not isinstance(row, dict):
        raise DataError("the row is not a JSON object.")
    if missing := [name for name in OF_PAIRS if name not in row]:
        raise DataError(f"the row has no {', '.join(missing)}.")
    if more := sorted(row.keys() - {*OF_PAIRS, *SAYS_NOTHING}):
        raise DataError(f"the row has {', '.join(map(repr, more))[:200]}, which pairs of answers do not have.")
    given = row["input"]
    if not isinstance(given, dict) or not isinstance(given.get("messages"), list):
        raise DataError('"input" must be an object with "messages", a list.')
    if more := sorted(given.keys() - {"messages", "tools", *SAYS_NOTHING}):
        raise DataError(f'"input" has {", ".join(map(repr, more))[:200]}, which is not read.')
    tools = {"tools": given["tools"]} if given.get("tools") else {}
    return {
        "prompt": given["messages"],
        "chosen": row["preferred_output"],
        "rejected": row["non_preferred_output"],
    } | tools
