"""A thread that answers, and the one of language models, which writes all answers, a token of each at a time.

    waiting  ->  as many as fit join the batch, each prompt read alone  ->  a step for all  ->  those that ended leave

No more than `Limits.reading` tokens of prompts are read between two steps, a long one in parts, so that answers go on.

A request waits in the order of its arrival, at most `Limits.waiting` of them. Rows with different adapters are in one
batch where the model allows it, and else in one batch for each adapter.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

from torch import nn

from rankwise.adapters.by_row import AdaptersByRow
from rankwise.errors import RankwiseError, typed
from rankwise.inference.batch import GrowingBatch, RowTokens
from rankwise.inference.decoding import Draft, Piece
from rankwise.inference.prefixes import MOST, Prefixes
from rankwise.serving.served import Served
from rankwise.system.processor import let_workers_go

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    batch_size: int = 16
    """Answers that are written at once."""
    waiting: int = 64
    positions: int = 2**15
    """Tokens of prompts and answers that are in memory at once, but for a single answer of more."""
    reading: int = 512
    """Tokens of prompts that are read before the answers that are being written get their next token."""
    prefix_bytes: int = MOST
    """Keys and values that stay for prompts that begin as earlier ones did."""


@dataclass
class Counts:
    """Since the start."""

    requests: int = 0
    refused: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    reused_prompt_tokens: int = 0
    answer_tokens: int = 0


class Full(Exception):
    """So many requests wait that another one would wait too long; `seconds` is when to ask again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Stopped(Exception):
    """Nothing is written any more."""


@dataclass(eq=False)
class Pending(Draft):
    """One answer that somebody asked for. `send` is called in the engine's thread."""

    send: Callable[[Piece], None] = field(kw_only=True)
    cancelled: bool = False
    began: float = 0.0
    """When its prompt was read, by the engine's clock."""


STOPPED = "the server was stopped before the answer had ended."


class EngineThread(ABC):
    """A thread that answers what waits."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.counts = limits, Counts()
        self._changed = threading.Condition()
        self._stopping = False
        self._seconds = 1.0
        """How long an answer took lately, on average."""
        self._thread = threading.Thread(target=self._run, name="rankwise-engine", daemon=True)

    @property
    @abstractmethod
    def waiting(self) -> int: ...

    @property
    @abstractmethod
    def running(self) -> int: ...

    @abstractmethod
    def _run(self) -> None:
        """In the thread, until it is to stop."""
        ...

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """The workers of the calling thread, which has loaded the model, are ended first."""
        let_workers_go()
        self._thread.start()

    def stop(self) -> None:
        """After the step that is being computed; what waits or runs is not finished."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def check_room(self) -> None:
        """Full where not one more may wait, before anything is done for it."""
        with self._changed:
            self._check_room(1)

    def _check_room(self, more: int) -> None:
        if self.waiting + self.running + more > self.limits.waiting + self.limits.batch_size:
            self.counts.refused += 1
            raise Full(max(1, round(self._seconds * self.waiting / max(1, self.limits.batch_size))))


class ServingEngine(EngineThread):
    def __init__(self, module: nn.Module, rows: AdaptersByRow, limits: Limits) -> None:
        super().__init__(limits)
        self._module, self._rows = module, rows
        self._prefixes = Prefixes(limits.prefix_bytes)
        self._waiting: deque[Pending] = deque()
        self._running: dict[str | None, tuple[GrowingBatch, list[Pending]]] = {}
        self._actions: deque[Callable[[], None]] = deque()
        self._leases: Counter[str | None] = Counter()
        self._retired: dict[str, Callable[[], None]] = {}
        self._reading: Pending | None = None
        """Whose prompt is being read."""

    def submit(self, several: list[Pending]) -> None:
        """All of them or, where they are too many, Full."""
        with self._changed:
            if self._stopping:
                raise Stopped
            self._check_room(len(several))
            self.counts.requests += 1
            self._waiting.extend(several)
            self._changed.notify()

    def between(self, action: Callable[[], None]) -> None:
        """Let the engine's thread do this between two tokens, and wait for its end. Its errors are raised here."""
        done: Future[None] = Future()

        def act() -> None:
            try:
                done.set_result(action())
            except BaseException as error:
                done.set_exception(error)

        with self._changed:
            if self._stopping:
                raise Stopped
            self._actions.append(act)
            self._changed.notify()
        done.result()

    @contextmanager
    def leased(self, choose: Callable[[], Served]) -> Iterator[Served]:
        """Inside, the adapter of a model that was chosen stays: a question about it is written, and then submitted."""
        with self._changed:
            served = choose()
            self._leases[served.adapter] += 1
        try:
            yield served
        finally:
            with self._changed:
                self._leases[served.adapter] -= 1
                self._changed.notify()

    def retire(self, adapter: str, discard: Callable[[], None]) -> None:
        """Let the engine's thread discard an adapter that can no longer be chosen, once its last answer has ended."""
        with self._changed:
            self._retired[adapter] = discard
            self._changed.notify()

    def cancel(self, several: Iterable[Pending]) -> None:
        """Nobody reads these any more."""
        with self._changed:
            for pending in several:
                self.counts.cancelled += not (pending.stopped or pending.cancelled)
                pending.cancelled = True
            self._waiting = deque(pending for pending in self._waiting if not pending.cancelled)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        every_batch = tuple(self._running.values())  # the engine's thread changes it
        return int(self._reading is not None) + sum(len(every) for _, every in every_batch)

    @property
    def _begun(self) -> list[Pending]:
        """Requests whose prompt is being read or whose answer is being written; only the engine's thread may ask."""
        reading = [] if self._reading is None else [self._reading]
        return [*reading, *(pending for _, every in self._running.values() for pending in every)]

    def _run(self) -> None:
        """Nobody is left waiting, whatever happens to this thread."""
        try:
            while self._awaits():
                self._act()
                self._join_waiting()
                for key in list(self._running):
                    self._step(key)
        except Exception as error:
            self._fail(self._begun, error)
        finally:
            with self._changed:
                self._stopping, left = True, list(self._waiting)
                self._waiting.clear()
                actions = list(self._actions)
            for act in actions:  # as there are no answers any more
                act()
            for pending in (*left, *self._begun):
                pending.send(Piece(problem=STOPPED))

    def _awaits(self) -> bool:
        """Whether there is something to write, once there is; False when it is time to stop."""
        with self._changed:
            while not (self._waiting or self.running or self._stopping or self._actions or self._unused()):
                self._changed.wait()
            return not self._stopping

    def _act(self) -> None:
        """What others want done between two tokens."""
        with self._changed:
            unused = self._unused()
            actions = [*self._actions, *map(self._retired.pop, unused)]
            self._actions.clear()
        for name in unused:
            self._prefixes.forget(name)
        for action in actions:
            action()

    def _unused(self) -> list[str]:
        """Retired adapters that no answer needs any more."""
        if not self._retired:
            return []
        used = {pending.row.adapter for pending in (*self._begun, *self._waiting)}
        return [name for name in self._retired if name not in used and not self._leases[name]]

    def _join_waiting(self) -> None:
        """Read prompts, first of all the one that was begun; those that are read join."""
        left = self.limits.reading
        while left > 0 and (pending := self._reading or self._next()) is not None:
            left -= self._read(pending, left)

    def _read(self, pending: Pending, most: int) -> int:
        """Read so many tokens of a prompt at most; after the last of them it joins. Returns how many were read."""
        key, row, before = None if self._rows.mixes else pending.row.adapter, pending.row, pending.row.read
        batch, every = self._running.setdefault(key, (GrowingBatch(self._module, self._rows.of, self._prefixes), []))
        chosen = None
        try:
            chosen = None if pending.cancelled else batch.read(row, most)
        except Exception as error:
            self._fail([pending], error)
            batch.leave([row])
        if chosen is not None:
            pending.began = time.monotonic()
            self.counts.prompt_tokens += len(row.prompt)
            self.counts.reused_prompt_tokens += row.reused
            every.append(pending)
            self._reading = None
            self._deliver(key, [(pending, chosen)])
        elif pending.cancelled:
            self._reading = None
        return row.read - max(before, row.reused)

    def _next(self) -> Pending | None:
        """The first that waits, if there is room for it."""
        with self._changed:
            if not self._waiting or self._stopping:
                return None
            rows = [pending.row for pending in self._begun]
            widest = max((len(row.prompt) + len(row.ids) for row in rows), default=0)
            own = self._waiting[0]
            width = max(widest, len(own.row.prompt)) + own.longest
            room = not rows or (len(rows) < self.limits.batch_size and (len(rows) + 1) * width <= self.limits.positions)
            self._reading = self._waiting.popleft() if room else None
            return self._reading

    def _step(self, key: str | None) -> None:
        batch, every = self._running[key]
        self._leave(key, [pending for pending in every if pending.cancelled])
        if not every:
            return
        try:
            chosen = batch.step()
        except Exception as error:
            self._fail(every, error)
            del self._running[key]
            return
        self._deliver(key, list(zip(every, chosen, strict=True)))

    def _deliver(self, key: str | None, tokens: Sequence[tuple[Pending, RowTokens]]) -> None:
        ended = []
        for pending, chosen in tokens:
            try:
                pending.row.check()
                piece = pending.take(chosen or ())
                self.counts.answer_tokens += len(piece.chosen)
                if chosen:
                    pending.send(piece)
            except Exception as error:  # of its numbers or its text; the others go on
                self._fail([pending], error)
                ended.append(pending)
            if pending.stopped is not None:
                ended.append(pending)
                self._seconds += 0.1 * (time.monotonic() - pending.began - self._seconds)
        self._leave(key, ended)

    def _leave(self, key: str | None, ended: list[Pending]) -> None:
        batch, every = self._running[key]
        if not ended:
            return
        batch.leave([pending.row for pending in ended])
        every[:] = [pending for pending in every if pending not in ended]
        if not every:
            del self._running[key]

    def _fail(self, several: list[Pending], error: Exception) -> None:
        """End these answers with a sentence for whoever asked. Unexpected errors are logged with their traceback."""
        own = typed(error) or error
        if not isinstance(own, RankwiseError):
            _log.error("an answer failed", exc_info=error)
        self.counts.failed += len(several)
        problem = str(own) if isinstance(own, RankwiseError) else "the answer could not be written; the log says why."
        for pending in several:
            pending.cancelled = True
            pending.send(Piece(problem=problem))
