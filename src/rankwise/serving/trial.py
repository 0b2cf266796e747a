"""Constraints that requests bring are compiled first in a process with limits: nothing else can stop what compiles.

    request  [[kind, text, place], ...], or [[kind, text, place, answer]]
    reply    for each a line with its problems, a list of sentences

The process may take as much as one that renders templates (template_renderer.py), has less claim to the processor than
answers, and is started again where it was lost. What was tried once is not tried again.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from signal import SIGTERM
from typing import Any

from rankwise.config.data import Constraint
from rankwise.constraints.constraint import constraint_of, grammar_of, problem_with
from rankwise.constraints.matcher import begun, problem_of
from rankwise.constraints.schema import validator_of
from rankwise.errors import ConfigError
from rankwise.rows.text.template_process import EXCEEDED, exchanged
from rankwise.rows.text.template_renderer import limit_memory, limit_time
from rankwise.serving.bodies import BadRequest

Request = tuple[str, str, str, *tuple[str, ...]]
"""The kind of a constraint, its text, where it was given, and an answer that is to keep to it."""
PATIENCE, REMEMBERED = 3, 4096
"""Seconds until a request is told to come again, and constraints whose problems are known."""


class TrialProcess:
    """`check` is for the thread of the routes. Another thread talks to the process, which begins with the first."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "rankwise-trial")
        self._process: subprocess.Popen[bytes] | None = None
        self._known: dict[int, list[str]] = {}
        """By the hash of what was given."""
        atexit.register(self.close)

    async def check(self, every: Sequence[Request]) -> None:
        """BadRequest with what is wrong, or where that took too long. Where this is cancelled, so is the work."""
        if any(hash(one) not in self._known for one in every):
            job = self._thread.submit(self._try, every)
            try:
                await asyncio.wait_for(asyncio.wrap_future(job), PATIENCE)
            except TimeoutError:
                message = f"other constraints are being compiled. Try again in {PATIENCE} s."
                raise BadRequest(message, status=429) from None
            finally:
                if not job.done() and not job.cancel() and self._process is not None:
                    self._process.terminate()
        if problems := [problem for one in every for problem in self._known.get(hash(one), ())]:
            raise BadRequest(*problems, parameter=re.split(r"\W", problems[0])[0])

    def _try(self, every: Sequence[Request]) -> None:
        """One that exceeds a limit behind others is tried again alone, so that none is refused for another's time."""
        while left := [one for one in every if hash(one) not in self._known]:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
            replies = exchanged(self._process, json.dumps(left).encode(), len(left))
            if self._process.poll() == -SIGTERM:
                raise TimeoutError
            for at, (one, (*problems,)) in enumerate(zip(left, replies, strict=False)):
                if problems and isinstance(problems[0], dict):
                    if at:
                        break
                    why = EXCEEDED[problems[0]["exceeded"]]
                    problems = [f"{one[2]}: no answer can be held to this {one[0]}: to compile it {why}."]
                self._known[hash(one)] = problems
        for old in [*self._known][:-REMEMBERED]:
            del self._known[old]

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


TRIALS, ANSWERS = TrialProcess(), TrialProcess()
"""No answer waits for somebody's constraint."""


def problems_with(kind: Any, text: str, where: str, *answers: str) -> list[str]:
    """What is wrong with a constraint or an answer; nothing of it stays."""
    try:
        if answers:
            return [*filter(None, [problem_with(Constraint(kind=kind, text=text), answers[0])])]
        constraint_of(kind, text, where)
    except ConfigError as error:
        return error.problems
    finally:
        for cached in (grammar_of, problem_of, begun, validator_of):
            cached.cache_clear()
    return []


if __name__ == "__main__":  # until the input ends, which it does with the parent
    with suppress(AttributeError):  # Windows
        os.nice(10)
    problems_with("schema", "{}", "")  # the imports do not count
    limit_memory()
    for line in sys.stdin.buffer:
        limit_time(len(line))
        for given in json.loads(line):
            sys.stdout.buffer.write(json.dumps(problems_with(*given)).encode() + b"\n")
            sys.stdout.buffer.flush()  # a later one may end this process
