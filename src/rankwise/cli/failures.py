"""An error into one clear message and an exit code; with --json, into one object on stdout as well.

Only what a user can mend is caught. Anything else is a fault of ours and keeps its traceback, as does every error
when RANKWISE_DEBUG is set.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from rankwise.cli.visible import visible
from rankwise.errors import Interrupted, RankwiseError, ResourceError, is_out_of_memory
from rankwise.system.signals import ask_to_stop, forget


@contextmanager
def failures_told(as_json: bool) -> Iterator[None]:
    forget()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # a closed terminal sends the last; Windows has none
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and `&` have it
            signal.signal(number, _end)
    try:
        yield
        sys.stdout.flush()
    except RankwiseError as error:
        _leave(str(error), type(error).__name__, error.exit_code, as_json, error)
    except KeyboardInterrupt as error:
        code = getattr(error, "exit_code", 130)
        _leave(str(error) or "stopped.", "Interrupted", code, as_json, error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _leave("out of memory.", "ResourceError", ResourceError.exit_code, as_json, error)
    except BrokenPipeError as error:  # somebody downstream, like `head`, has read enough
        _silence()
        raise SystemExit(0) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        _silence()
        _leave(
            f"the output cannot be written: {error.strerror}.", "ResourceError", ResourceError.exit_code, False, error
        )


def _silence() -> None:
    """So that nothing more is written when Python ends."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123


def _end(number: int, frame: FrameType | None) -> NoReturn:
    ask_to_stop(KeyboardInterrupt() if number == signal.SIGINT else Interrupted("told to end.", 128 + number))


def _leave(message: str, kind: str, code: int, as_json: bool, error: BaseException) -> NoReturn:
    if os.environ.get("RANKWISE_DEBUG"):
        raise error
    print(f"rankwise: {visible(message)}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": message, "kind": kind, "exit_code": code}))
    raise SystemExit(code) from None
