"""Every error that a user can meet. A message says what is wrong, where, with which value, and what to do.

    RankwiseError (ValueError)      exit code
    ├── ConfigError                   2   a setting is unknown, missing or wrong
    ├── DataError                   2   a data file or row cannot be used (file:line)
    │   └── TemplateError           2   a conversation cannot be divided into prompt and answers
    ├── ModelError                  2   a base model is missing, damaged or refused
    │   └── RemoteCodeError         2   the model ships Python code, which is not run
    ├── TargetError                 2   a target names no layer that can be adapted
    ├── AdapterError                2   an adapter file is damaged, foreign or does not fit
    ├── RunError                    2   a run is missing, finished or unreadable
    │   ├── RunBusyError            3   another process is writing this run
    │   └── ResultError             2   the files of a run's result have changed
    ├── TrainingError               1   training started and could not continue
    ├── EvaluationError             1   an evaluation started and could not continue
    ├── ExportError                 1   an engine does not do with an export what the trained model does
    ├── TrackingError               1   a tracker could not take the records of a run
    └── ResourceError               4   out of disk or memory
    Interrupted (KeyboardInterrupt) 130 Ctrl-C, or 143 when a signal ended the process

A bug in rankwise is an `assert` or an ordinary exception, never one of these. What the operating system refuses is none
either: `typed` turns its exceptions, and those by which libraries pass them on, into one of these.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable


class RankwiseError(ValueError):
    """A mistake that the user can fix. The message says what is wrong, where, and what to do."""

    exit_code = 2


class ConfigError(RankwiseError):
    """All problems of the settings at once."""

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else problems
        super().__init__("\n".join(self.problems))


class DataError(RankwiseError):
    pass


class TemplateError(DataError):
    pass


class ModelError(RankwiseError):
    pass


class RemoteCodeError(ModelError):
    pass


class TargetError(RankwiseError):
    pass


class AdapterError(RankwiseError):
    pass


class RunError(RankwiseError):
    pass


class RunBusyError(RunError):
    exit_code = 3


class ResultError(RunError):
    pass


class TrainingError(RankwiseError):
    exit_code = 1


class EvaluationError(RankwiseError):
    exit_code = 1


class ExportError(RankwiseError):
    exit_code = 1


class TrackingError(RankwiseError):
    exit_code = 1


class ResourceError(RankwiseError):
    exit_code = 4


class Interrupted(KeyboardInterrupt):
    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


NO_MEMORY = re.compile(
    r"not enough memory|can't allocate memory|Cannot allocate memory|std::bad_alloc|can't start new thread"
    r"|failed to map segment|cannot map zero-fill pages"
    r"|could not (?:create|execute) a (?:primitive|memory object)(?! descriptor)"
)
"""What torch reports on a CPU, on Windows and elsewhere, what C++ and oneDNN do, what Python says of a thread that gets
no stack, and the loader of a library that gets no addresses."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_FILES_LEFT = {errno.EMFILE, errno.ENFILE}
DEVICE = r"(?i:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|\Z)"
"""The beginning of a name that Windows has for a device, so that no file can have it there."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. Recognised by name and text, so that torch is not imported."""
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (
            isinstance(error, RuntimeError | ImportError | OSError)
            and (type(error).__name__ == "OutOfMemoryError" or NO_MEMORY.search(str(error)) is not None)
        )
    )


TYPED = (RankwiseError, OSError, MemoryError, UnicodeEncodeError)
"""The kinds of exceptions that `typed` may turn into an error for a user."""


def typed(error: BaseException) -> RankwiseError | None:
    """The error that a user meets in place of an exception of the operating system; None for a bug in rankwise."""
    if isinstance(error, RankwiseError):
        return error
    if is_out_of_memory(error):
        library = f" A library got no room ({first_line(error)}); see ulimit -v." * isinstance(error, ImportError)
        return ResourceError(f"out of memory.{library}")
    passed_on = re.search(r"\(os error (\d+)\)", str(error))  # the form of libraries that are written in Rust
    if isinstance(error, OSError):
        return _of_system(error.errno, error.strerror or first_line(error), error.filename)
    if passed_on is not None:
        return _of_system(int(passed_on[1]), first_line(error), None)
    if isinstance(error, UnicodeEncodeError) and "surrogates not allowed" in error.reason:
        return DataError(
            f"a text cannot be written, because it has half of a character at position {error.start:,}: "
            f"{error.object[max(0, error.start - 20) : error.end + 20]!r}. Remove it."
        )
    return None


def _of_system(number: int | None, reason: str, file: object) -> RankwiseError:
    where = "a file or folder" if file is None else os.fsdecode(file) if isinstance(file, str | bytes) else str(file)
    if number in FULL:
        return ResourceError(f"{where} cannot be written: {reason}. Free some space, or use another disk.")
    if number in NO_FILES_LEFT:
        return ResourceError(f"{where} cannot be opened: {reason}. Allow more with ulimit -n.")
    if number in (errno.EAGAIN, errno.ENOLCK):
        return ResourceError(f"{where} cannot be used: {reason}.")
    if number == errno.EIO:
        return ResourceError(f"{where} cannot be read or written: {reason}. Check the disk, or use another one.")
    return RunError(f"{where} cannot be read or written: {reason}.")


def first_line(error: BaseException) -> str:
    """The first line of another library's error, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


SAME = 5
_VARYING = re.compile(r"^.*?:\d+(?: \([a-z]+ \d+\))?: |(?<= is ).*(?=; )|\d+")
"""What differs between the same problem of two rows: their places, the value that is shown, and numbers."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The hint ' Did you mean "x"?' with the nearest known word, or nothing."""
    names = list(known)
    near = [*abbreviated(word, names), *difflib.get_close_matches(word, names, n=1, cutoff=0.6)]
    return f' Did you mean "{near[0]}"?' if near else ""


FORMER = {"products": "matmul", "together": "max-batch", "waiting": "max-queue", "prefix-memory": "prefix-cache"}
"""What earlier versions called flags and settings."""


def abbreviated(word: str, known: Iterable[str]) -> list[str]:
    """The known names that a word is short for, or was an earlier name of: learning_rate for lr, --matmul for
    --products."""
    short = word.strip("-")
    return [
        name for name in known
        if name.strip("-") == FORMER.get(short)
        or (len(short) > 1 and short == re.sub("[-_]*([a-z0-9])[a-z0-9]*", r"\1", name))
    ]  # fmt: skip


def joined_problems(problems: list[str], limit: int = 20) -> str:
    """Join the problems of many rows, one per line, and one for the same problem of more than `SAME` rows. After
    `limit` lines, only the number of the others is given."""
    alike: dict[str, list[str]] = {}
    for problem in problems:
        alike.setdefault(_VARYING.sub("", problem), []).append(problem)
    lines = list[tuple[str, int]]()
    for same in alike.values():
        one = f"{same[0]} The same in {len(same) - 1:,} more rows."
        lines += [(problem, 1) for problem in same] if len(same) <= SAME else [(one, len(same))]
    rest = sum(rows for _, rows in lines[limit:])
    told = [line for line, _ in lines[:limit]] + [f"and {rest:,} more rows with problems."] * (rest > 0)
    return "\n".join(told)


def some(items: Iterable[str], limit: int = 12) -> str:
    """Join the entries of a list. After `limit` entries, only the number of the others is given."""
    listed = list(items)
    rest = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {rest} more" if rest > 0 else "")


def one_line(text: str, limit: int = 60) -> str:
    """A text of somebody's data in a sentence: on one line, cut, and without signs that steer a terminal."""
    whole = " ".join(
        "".join(sign if sign.isprintable() or sign.isspace() else repr(sign)[1:-1] for sign in text).split()
    )
    return whole if len(whole) <= limit else f"{whole[: limit - 1]}…"
