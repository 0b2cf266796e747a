"""Constraints that requests bring are compiled first in a process of its own, with limits: a bad one ends it alone.

    request  [[kind, text, place], ...]
    reply    for each a line with its problems, a list of sentences that is empty where answers can be held to it

Compiling takes its time and memory inside of libraries, where no thread can be stopped. One process tries one request
after the other, with less claim to the processor than the answers. It may take as much as one that renders templates
(template_renderer.py) and is started again where it was lost; what was tried once is not tried again.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from signal import SIGTERM

from rankwise.config.data import Constraint
from rankwise.constraints.constraint import constraint_of, grammar_of, problem_with
from rankwise.constraints.matcher import begun, problem_of
from rankwise.constraints.schema import validator_of
from rankwise.errors import ConfigError, ResourceError
from rankwise.rows.text.template_process import EXCEEDED, exchanged
from rankwise.rows.text.template_renderer import limit_memory, limit_time

Given = tuple[str, str, str, *tuple[str, ...]]
"""The kind of a constraint, its text, where it was given, and an answer that is to keep to it."""
PATIENCE, REMEMBERED = 3.0, 4096
"""Seconds until a request is told to come again, and constraints whose problems are known."""


class Trials:
    """`check` is for the thread of the routes. Another thread talks to the process, which begins with the first."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "rankwise-trial")
        self._process: subprocess.Popen[bytes] | None = None
        self._known: dict[bytes, list[str]] = {}

    async def check(self, every: Sequence[Given]) -> None:
        """ConfigError with what is wrong. TimeoutError where no answer came in time; then, and where this is cancelled,
        nothing is compiled for it any more."""
        if any(_key(one) not in self._known for one in every):
            job = self._thread.submit(self._try, every)
            try:
                async with asyncio.timeout(PATIENCE):
                    await asyncio.wrap_future(job)
            finally:
                if not job.done() and not job.cancel() and self._process is not None:
                    self._process.terminate()
        if problems := [problem for one in every for problem in self._known.get(_key(one), ())]:
            raise ConfigError(problems)

    def _try(self, every: Sequence[Given]) -> None:
        """One that exceeds a limit behind others is tried again alone, so that none is refused for another's time."""
        while left := [one for one in every if _key(one) not in self._known]:
            process = self._started()
            replies = exchanged(process, json.dumps(left).encode(), len(left))
            if process.poll() == -SIGTERM:
                raise TimeoutError
            for at, (one, reply) in enumerate(zip(left, replies, strict=False)):
                if not (at and reply and isinstance(reply[0], dict)):
                    self._known[_key(one)] = [_sentence(one, problem) for problem in reply]
        for old in list(self._known)[:-REMEMBERED]:
            del self._known[old]

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise ResourceError(
                    f"constraints are compiled in a process of their own, which cannot be started ({error.strerror})."
                ) from None
        return self._process

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


TRIALS, ANSWERS = Trials(), Trials()
"""Nobody's answer waits for somebody's constraint."""
for _one in (TRIALS, ANSWERS):
    atexit.register(_one.close)


def _key(one: Given) -> bytes:
    return sha256(json.dumps(one).encode()).digest()


def _sentence(one: Given, problem: str | dict[str, str]) -> str:
    if isinstance(problem, str):
        return problem
    return f"{one[2]}: no answer can be held to this {one[0]}: to compile it {EXCEEDED[problem['exceeded']]}."


def problems_with(one: Given) -> list[str]:
    """What is wrong with a constraint, whose traces are removed."""
    kind, text, where, *answers = one
    try:
        for answer in answers:
            return [*filter(None, [problem_with(Constraint.model_validate({"kind": kind, "text": text}), answer)])]
        constraint_of(kind, text, where)
    except ConfigError as error:
        return error.problems
    finally:
        for cached in (grammar_of, problem_of, begun, validator_of):
            cached.cache_clear()
    return []


def main() -> None:
    """Answer requests until the input ends, which it does with the parent."""
    with suppress(AttributeError):  # Windows
        os.nice(10)
    problems_with(("schema", "{}", ""))  # the imports do not count
    limit_memory()
    for line in sys.stdin.buffer:
        limit_time(len(line))
        for one in json.loads(line):
            sys.stdout.buffer.write(json.dumps(problems_with(one)).encode() + b"\n")
            sys.stdout.buffer.flush()  # a later one may end this process


if __name__ == "__main__":
    main()
