"""A stop request that cannot get lost.

A signal handler raises an exception wherever the program is. Guards of compiled code (torch 2.13) treat any exception
as a failed guard and continue, so the request is stored here too, and training checks for it after each step.

A training first keeps what it has learned, which it can at the end of a step, and processes that train together stop
together: none may leave a step in which the others wait for it. So inside `deferred` the first request is only stored,
and heeded after the step, or before the next one. Who asks again is heeded at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_requests: list[KeyboardInterrupt] = []
_checks: list[Callable[[], None]] = []
_deferring: list[bool] = []
_ending: list[bool] = []


def ask_to_stop(request: KeyboardInterrupt) -> bool:
    """Raise the request, or store it alone inside `deferred`. Returns whether it waits there."""
    if _ending:
        return False
    again = bool(_requests)
    _requests[:] = [request]
    for check in _checks:
        check()
    if again or not _deferring:
        raise request
    return True


def requested() -> KeyboardInterrupt | None:
    """The stop request of this command, if there was one."""
    return _requests[0] if _requests else None


def raise_if_requested() -> None:
    """Raise a stop request whose exception was lost."""
    if _requests:
        raise _requests[0]


def forget() -> None:
    """Drop the request of an earlier command in the same process."""
    _requests.clear()
    _ending.clear()


def ignore_requests() -> None:
    """From here on the command ends anyway."""
    _ending[:] = [True]


def check_when_asked(check: Callable[[], None]) -> None:
    """Call `check` at each request, before it is raised or stored; what it raises comes first."""
    if check not in _checks:
        _checks.append(check)


@contextmanager
def deferred(several: bool = True) -> Iterator[None]:
    """Inside, the first request waits for `requested` to be asked."""
    if not several:
        yield
        return
    _deferring.append(True)
    try:
        yield
    finally:
        _deferring.pop()
