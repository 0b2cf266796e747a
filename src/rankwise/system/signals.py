"""A stop request that cannot get lost.

A signal handler raises an exception wherever the program is. Guards of compiled code (torch 2.13) treat any exception
as a failed guard and continue, so the request is stored here too, and training checks for it after each step.
"""

from __future__ import annotations

from typing import NoReturn

_requests: list[KeyboardInterrupt] = []


def ask_to_stop(request: KeyboardInterrupt) -> NoReturn:
    _requests[:] = [request]
    raise request


def requested() -> KeyboardInterrupt | None:
    """The stop request of this command, if there was one."""
    return _requests[0] if _requests else None


def heed() -> None:
    """Raise a stop request whose exception was lost."""
    if _requests:
        raise _requests[0]


def forget() -> None:
    """Drop the request of an earlier command in the same process."""
    _requests.clear()
