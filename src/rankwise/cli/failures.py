"""Turn an error into one message and an exit code, and with --json into one object on stdout as well.

Only errors that a user can correct are caught. Any other error is a bug in rankwise and keeps its traceback. With
RANKWISE_DEBUG set, every error keeps it.
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
def report_failures(as_json: bool) -> Iterator[None]:
    forget()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # a closed terminal sends SIGHUP; Windows has no such signal
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup and `&` ignore some signals
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
    except BrokenPipeError as error:  # the reader of the pipe, such as `head`, has closed it
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
    """Discard all further output, so that Python does not fail when it flushes stdout at exit."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123


def _end(number: int, frame: FrameType | None) -> NoReturn:
    ask_to_stop(KeyboardInterrupt() if number == signal.SIGINT else Interrupted("stopped by a signal.", 128 + number))


def _leave(message: str, kind: str, code: int, as_json: bool, error: BaseException) -> NoReturn:
    if os.environ.get("RANKWISE_DEBUG"):
        raise error
    print(f"rankwise: {visible(message)}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": message, "kind": kind, "exit_code": code}))
    raise SystemExit(code) from None
