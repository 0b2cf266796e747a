"""A rankwise command in a process of its own that has torch and transformers in memory from its first moment.

What is tested by kills, signals and limits needs a real process, but not the seconds that imports take. So a server
process imports once what a training needs, and each command is a fork of it (multiprocessing's forkserver). What it
prints goes into files; the environment is that of the caller.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kit.disk import unflushed

os.fsync = unflushed  # whatever these processes import comes through here
WARM = ["rankwise.commands.train", "rankwise.cli.main", "transformers.models.llama.modeling_llama"]


@dataclass(frozen=True)
class _Start:
    words: Sequence[str]
    folder: str
    environment: dict[str, str]
    out: Path
    largest: int | None
    ignored: int | None
    terminal: str | None


def _run(start: _Start) -> None:
    """In the new process: become `rankwise WORDS`."""
    os.chdir(start.folder)
    os.environ.clear()
    os.environ.update(start.environment)
    for number, path in ((1, start.out / "stdout"), (2, start.out / "stderr")):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    if start.terminal is not None:
        for number in (0, 2):
            os.dup2(os.open(start.terminal, os.O_RDWR | os.O_NOCTTY), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if start.ignored is not None:
        signal.signal(start.ignored, signal.SIG_IGN)
    if start.largest is not None:
        import resource  # late: Windows has none

        resource.setrlimit(resource.RLIMIT_FSIZE, (start.largest, start.largest))
    sys.argv = ["rankwise", *start.words]
    runpy.run_module("rankwise", run_name="__main__", alter_sys=True)


class Command:
    """`rankwise WORDS`, begun in the working folder; with the methods of subprocess.Popen.

    `largest` is the size in bytes of the largest file that the system lets it write, `ignored` a signal that it ignores
    from its start, as under nohup, and `terminal` the one that it reads and writes its stderr to.
    """

    def __init__(
        self, *words: object, largest: int | None = None, ignored: int | None = None, terminal: str | None = None
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(WARM)
        self._out = Path(tempfile.mkdtemp(prefix="command-"))
        given = [str(word) for word in words]
        start = _Start(given, str(Path.cwd()), dict(os.environ), self._out, largest, ignored, terminal)
        self._process = context.Process(target=_run, args=(start,))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, or the negative number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code if it has ended."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self._process.is_alive() and self.pid is not None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def output(self) -> tuple[str, str]:
        """What it has printed so far on stdout and on stderr."""
        paths = (self._out / "stdout", self._out / "stderr")
        stdout, stderr = (path.read_text(errors="replace") if path.exists() else "" for path in paths)
        return stdout, stderr

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; what it printed on stdout and on stderr."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"still running after {timeout} s: {self.output()}")
        return self.output()

    def wait_for_output(self, characters: int) -> str:
        """The first characters that it prints on stdout, as soon as they are there."""
        while len(self.output()[0]) < characters:
            assert self.poll() is None, self.output()
            time.sleep(0.01)
        return self.output()[0][:characters]


def ended(*words: object, largest: int | None = None) -> Command:
    """A command that has run to its end."""
    command = Command(*words, largest=largest)
    command.communicate()
    return command
