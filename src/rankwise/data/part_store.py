"""Where encoded parts lie until all of them are there: in files, so that they need no memory and survive a kill.

    parts 0, 1, 2, … of all sources       part number mod processes = the process that encodes it

The folder is named by the key of the whole, so a part is of the same content, settings and code, or is not looked at.
A part that is there and whole is not encoded again. A single part is not written: it is encoded again in a moment.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from uuid import uuid4

from rankwise.config.data import DataConfig
from rankwise.data.report import Tally
from rankwise.data.row_part import RowPart, is_whole
from rankwise.data.sources import Reading, open_source
from rankwise.errors import RankwiseError

SOURCES = "sources.json"
"""Names the files that the parts are of, so that the parts can go with one of them."""
CHUNKS_OF_PART = 10
"""A kill costs at most the rows of a part, for each process."""
States = dict[str, list[tuple[int, ...] | None]]


class PartMissing(RankwiseError):
    """A part of another process is not there, or not whole."""


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Encoders:
    """The processes of a machine that encode the same rows together; `meet` returns once all of them have called
    it."""

    rank: int = 0
    size: int = 1
    meet: Callable[[], None] = _nothing
    check_stop: Callable[[], None] = _nothing
    """Raises where this process is to end, whatever the others do."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0


ALONE = Encoders()


@dataclass
class PartStore:
    """The parts of some sources in the order of their rows. Without a `folder` they are held in memory."""

    folder: Path | None = None
    encoders: Encoders = ALONE
    states: States = field(default_factory=dict)
    """What the system said of the files of each source before the key was made of them."""
    chunks: int = field(default_factory=lambda: CHUNKS_OF_PART)
    """Chunks of a part at most."""
    there: int = 0
    """Parts of this process that had been encoded before."""
    joined: Path | None = None
    """The folder that the parts were joined in."""
    _names: list[str] = field(default_factory=list)
    _in_memory: dict[str, RowPart] = field(default_factory=dict)
    _can_write: bool = True

    def divides(self, reading: Reading) -> bool:
        """Whether the parts of a source can be made one without the others; else the first process makes them all."""
        return self.folder is not None and not reading.is_drawn

    def begin(self, reading: Reading, source: int, number: int) -> bool:
        """Announce a part of a source, in order. Returns whether this process has to encode it."""
        name = f"{source:03}-{number:06}.part"
        self._names.append(name)
        if not self.divides(reading):
            return True
        if len(self._names) == 2:  # the first part is not the only one
            for first in list(self._in_memory):
                self._write(first, self._in_memory.pop(first))
        is_own = number % self.encoders.size == self.encoders.rank
        is_there = is_own and self._is_there(name)
        self.there += is_there
        return is_own and not is_there

    def put(self, reading: Reading, part: RowPart) -> None:
        """Store the part that was announced last."""
        name = self._names[-1]
        changed = self.states.get(reading.source.path) != states_of(reading)  # then it is not what the key is of
        is_only = self.encoders.is_first and len(self._names) == 1  # so far
        if not self.divides(reading) or is_only or changed:
            self._in_memory[name] = part
        else:
            self._write(name, part)

    def parts(self, source: int, empty: Tally) -> Iterator[RowPart]:
        """The parts of a source. PartMissing where one is not there."""
        for name in self._names:
            if name.startswith(f"{source:03}-"):
                part = self._in_memory.pop(name, None) or self._read(name, empty.anew())
                if part is None:
                    raise PartMissing(f"{self.folder}: {name} is missing or damaged. Start again.")
                yield part

    def scratch(self) -> Path | None:
        """A new folder for what the parts are joined to; None where there is one part, or no folder."""
        if self.folder is None or len(self._names) < 2 or not self._can_write:
            return None
        try:
            self.folder.mkdir(0o700, parents=True, exist_ok=True)
            self.joined = Path(mkdtemp(prefix="joined-", dir=self.folder))
        except OSError:
            return None
        return self.joined

    def forget(self) -> None:
        """Remove what was stored."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, name: str, part: RowPart) -> None:
        """In memory where the cache cannot be written, which is reported at the end."""
        assert self.folder is not None, "else parts stay in memory"
        temporary = self.folder / f"{name}.{uuid4().hex}"
        try:
            if self._can_write:
                self.folder.mkdir(0o700, parents=True, exist_ok=True)
                (self.folder / SOURCES).write_text(json.dumps(list(self.states)), encoding="utf-8")
                temporary.touch(0o600)
                temporary.write_bytes(part.to_bytes())
                temporary.replace(self.folder / name)
        except OSError:
            self._can_write = False
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        if not self._can_write:
            self._in_memory[name] = part

    def _is_there(self, name: str) -> bool:
        content = self._content(name)
        return content is not None and is_whole(content)

    def _read(self, name: str, empty: Tally) -> RowPart | None:
        content = self._content(name)
        return None if content is None else RowPart.of_bytes(content, empty)

    def _content(self, name: str) -> bytes | None:
        try:
            return None if self.folder is None else (self.folder / name).read_bytes()
        except OSError:
            return None


def all_states(spec: DataConfig) -> States:
    """The states of all files that are read."""
    sources = filter(None, (*spec.all_sources, spec.measured_source))
    return {source.path: states_of(open_source(spec, source)) for source in sources}


def states_of(reading: Reading) -> list[tuple[int, ...] | None]:
    """What the system says of each file: something else where somebody wrote into it."""
    return [_state(Path(part.name)) for part in reading.parts]


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):  # a data set of the hub is no file
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino
