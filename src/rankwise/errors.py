"""Every error a user can meet. Each is one sentence or a short list: what, where, the value found, what to do.

    RankwiseError (ValueError)      exit code
    ├── ConfigError                   2   a setting is unknown, missing or wrong
    ├── DataError                   2   a data file or row cannot be used (file:line)
    │   └── TemplateError           2   a conversation cannot be cut into learned and given text
    ├── ModelError                  2   a base model is missing, damaged or refused
    │   └── RemoteCodeError         2   the model ships Python code, which is not run
    ├── TargetError                 2   a target names no layer that can be adapted
    ├── AdapterError                2   an adapter file is damaged, foreign or does not fit
    ├── RunError                    2   a run is missing, finished or unreadable
    │   ├── RunBusyError            3   another process is writing this run
    │   └── ResultError             2   a run's result is not what training wrote
    ├── TrainingError               1   training started and could not go on
    ├── EvaluationError             1   an evaluation started and could not go on
    └── ResourceError               4   out of disk or memory
    Interrupted (KeyboardInterrupt) 130 Ctrl-C, or 143 when the process was told to end

A mistake of ours is an `assert` or an ordinary exception, never one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RankwiseError(ValueError):
    exit_code = 2


class ConfigError(RankwiseError):
    """All problems of one specification at once."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


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


class ResourceError(RankwiseError):
    exit_code = 4


class Interrupted(KeyboardInterrupt):
    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


NO_MEMORY = ("not enough memory", "can't allocate memory", "Cannot allocate memory")
"""What torch says on a processor: on Windows, and elsewhere."""


def is_out_of_memory(error: BaseException) -> bool:
    """Known by name and text, so that nobody has to import torch to ask."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or any(text in str(error) for text in NO_MEMORY))
    )


def first_line(error: BaseException) -> str:
    """What an error of somebody else's says, or what it is."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """' Did you mean "x"?' for the nearest known word, or nothing."""
    near = difflib.get_close_matches(found, list(known), n=1, cutoff=0.6)
    return f' Did you mean "{near[0]}"?' if near else ""


def together(problems: list[str], limit: int = 20) -> str:
    """Problems of many rows as one message, a line each, cut to `limit` lines that say how many follow."""
    rest = len(problems) - limit
    return "\n".join(problems[:limit]) + (f"\nand {rest:,} more rows with problems." if rest > 0 else "")


def some(items: Iterable[str], limit: int = 12) -> str:
    """A list cut to `limit` entries that says how many it left out."""
    listed = list(items)
    rest = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {rest} more" if rest > 0 else "")
