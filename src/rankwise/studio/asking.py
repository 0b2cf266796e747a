"""One model in memory for the Ask screen: loaded with the first question, and freed after some time without one.

    runs over one base      the answers of all sides are written at once, each with its adapter and strength
    any other run           a classifier, a whole model, an encoder with a decoder: one side after the other

Answers are those of `rankwise chat`: the same prompt, the same ends, and a stop where an answer repeats itself.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from pydantic import Field

from rankwise.config.adapters import LARGEST_STRENGTH
from rankwise.config.base import Config, Number
from rankwise.errors import RunError
from rankwise.runs.records import Callback
from rankwise.system.memory import give_back

IDLE = 300.0
"""Seconds after the last answer in which the model stays in memory."""
MOST_SIDES, LONGEST, USUAL = 6, 4096, 512
LARGEST_IMAGE = 20_000_000
"""Bytes of an image file that is asked about."""
LONGEST_IMAGE = LARGEST_IMAGE * 4 // 3 + 4
"""Characters of it in base64."""
BASE = ""
"""The side of the untouched base."""
Send = Callable[[dict[str, Any]], None]


class Side(Config):
    """One column of the page: a run, or the base, with its own conversation."""

    run: str = Field(max_length=256)
    strength: Number = Field(1.0, ge=0, le=LARGEST_STRENGTH)
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=512)]


class AskBody(Config):
    """What the page sends. `runs` are those in memory."""

    runs: Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(min_length=1, max_length=8)]
    sides: Annotated[list[Side], Field(min_length=1, max_length=MOST_SIDES)]
    image: str | None = Field(None, max_length=LONGEST_IMAGE)
    """The bytes of an image file, in base64, for a classifier of images; the message is then the file's name."""
    system: str | None = Field(None, max_length=100_000)
    temperature: Number = Field(0.0, ge=0, le=2)
    top_p: Number = Field(1.0, gt=0, le=1)
    seed: Annotated[int, Field(ge=0, lt=2**53, strict=True)] = 0
    max_new_tokens: Annotated[int, Field(ge=1, le=LONGEST, strict=True)] | None = None
    """Without a number USUAL, or fewer where the context has no room for so many."""


class Answering(Protocol):
    """A model in memory."""

    def answer(self, body: AskBody, send: Send, left: threading.Event) -> None:
        """`send` gets what is new of each side, until the last has ended or the page has `left`."""
        ...


Load = Callable[[Sequence[str], Callback], Answering]


@dataclass
class LoadedModels:
    """The one model, and who uses it. `load` takes the names of runs (answering.py)."""

    load: Load
    idle: float = IDLE
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _turn: threading.Lock = field(default_factory=threading.Lock)
    """Held while a question is answered, so that one is answered at a time."""
    _names: tuple[str, ...] = ()
    _loaded: Answering | None = None
    _using: int = 0
    _used: float = 0.0
    _timer: threading.Timer | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The runs in memory."""
        return self._names

    def ask(self, body: AskBody, send: Send, left: threading.Event, callback: Callback) -> None:
        """Load what is not loaded yet, and answer. RunError while answers of another model are being written."""
        with self._lock:
            names = tuple(body.runs)
            if self._loaded is None or self._names != names:
                if self._using:
                    raise RunError("Another model is still answering. Stop it, or wait for its answer.")
                self._close()
                self._loaded, self._names = self.load(names, callback), names
            self._using += 1
            loaded = self._loaded
        try:
            with self._turn:
                loaded.answer(body, send, left)
        finally:
            with self._lock:
                self._using -= 1
                self._used = time.monotonic()
                self._wait()

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(self.idle, self.release, (self.idle,))
        self._timer.daemon = True
        self._timer.start()

    def release(self, after: float = 0.0) -> bool:
        """Free the memory, if no question came for so many seconds."""
        with self._lock:
            if self._using or time.monotonic() - self._used < after:
                return False
            self._close()
            return True

    def _close(self) -> None:
        if self._loaded is None:
            return
        self._loaded, self._names = None, ()
        gc.collect()
        if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
        give_back()
