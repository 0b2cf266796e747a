"""Turn an error into one message and an exit code, and with --json into one object on stdout as well.

Only what a user, a file, a disk or a signal can do is caught (errors.typed). Any other error is a bug in rankwise and
keeps its traceback. With RANKWISE_DEBUG set, every error keeps it.

Ctrl-C raises KeyboardInterrupt wherever the program is. Inside an import some libraries turn it into an error of their
own, and where nothing can be raised Python prints it and goes on. So the request is remembered (system/signals.py), and
any error after it is its consequence. While torch is being imported nothing is raised: its compiled parts, which call
Python as they begin, would abort the process. Nothing has to be put in order then, so it ends at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import NoReturn

from rankwise.cli.words import in_own_words, visible
from rankwise.errors import FULL, Interrupted, RankwiseError, ResourceError, typed
from rankwise.system.launched import LAUNCHER, is_first_to_end, launched
from rankwise.system.signals import ask_to_stop, forget, ignore_requests, requested


@contextmanager
def report_failures(as_json: bool) -> Iterator[None]:
    forget()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # a closed terminal sends SIGHUP; Windows has no such signal
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup and `&` ignore some signals
            signal.signal(number, partial(_end, as_json))
    try:
        with _no_report_of_ctrl_c():
            yield
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        _interrupted(error, as_json)
    except BrokenPipeError as error:  # the reader of the pipe, such as `head`, has closed it
        _silence()
        raise SystemExit(0) from error
    except Exception as error:
        if (request := requested()) is not None and not isinstance(error, RankwiseError):
            _interrupted(request, as_json)
        if (ours := typed(error)) is None:
            is_first_to_end({"error": f"{type(error).__name__}: {error}", "kind": "Bug", "exit_code": 1})
            raise
        if isinstance(error, OSError) and error.errno in FULL and error.filename is None:  # stdout
            _silence()
            as_json = False
            ours = ResourceError(f"the output cannot be written: {error.strerror}.")
        _leave(str(ours), type(ours).__name__, ours.exit_code, as_json, error)


@contextmanager
def _no_report_of_ctrl_c() -> Iterator[None]:
    """Ctrl-C in a finaliser or a callback, from which nothing can be raised, is not printed as an error."""
    before = sys.unraisablehook

    def report(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            before(unraisable)

    sys.unraisablehook = report
    try:
        yield
    finally:
        sys.unraisablehook = before


def _interrupted(error: BaseException, as_json: bool) -> NoReturn:
    _leave(str(error) or "stopped.", "Interrupted", getattr(error, "exit_code", 130), as_json, error)


def _silence() -> None:
    """Discard all further output, so that Python does not fail when it flushes stdout at exit."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123


def _end(as_json: bool, number: int, frame: FrameType | None) -> None:
    try:
        waits = ask_to_stop(
            KeyboardInterrupt() if number == signal.SIGINT else Interrupted("stopped by a signal.", 128 + number)
        )
        if waits and ((own := launched()) is None or own.rank == 0):
            os.write(2, b"rankwise: stopping after this step. A second Ctrl-C or signal stops at once.\n")
    except KeyboardInterrupt as error:
        if not _torch_is_being_imported():
            raise
        try:
            _interrupted(error, as_json)
        finally:  # where nobody reads what it prints, too
            os._exit(getattr(error, "exit_code", 130))


def _torch_is_being_imported() -> bool:
    spec = getattr(sys.modules.get("torch"), "__spec__", None)
    return getattr(spec, "_initializing", False)


def _leave(message: str, kind: str, code: int, as_json: bool, error: BaseException) -> NoReturn:
    at_once = _torch_is_being_imported()
    if os.environ.get("RANKWISE_DEBUG") and not at_once:
        raise error
    left_to_launcher = error is requested() and LAUNCHER in os.environ  # it knows who asked
    ignore_requests()
    message = in_own_words(message)
    problem = {"error": message, "kind": kind, "exit_code": code}
    if is_first_to_end(problem | {"left_to_launcher": left_to_launcher}) and not left_to_launcher:
        print(f"rankwise: {visible(message)}", file=sys.stderr)
        if as_json:
            print(json.dumps(problem))
    # of several processes the others are gone or going: nothing is left to be put in order with them
    if launched() is not None or at_once:
        end_at_once(code)
    raise SystemExit(code) from None


def end_at_once(code: int) -> NoReturn:
    """Without the seconds that taking torch down may take on a busy machine."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
