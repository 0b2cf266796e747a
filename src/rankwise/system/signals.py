"""A request to stop that cannot get lost.

A signal's handler raises wherever the program is. Guards of compiled code take any exception in them for a "no" and go
on (torch 2.13), so the request is kept here as well, and training looks for it after each step.
"""

from __future__ import annotations

from typing import NoReturn

_asked: list[KeyboardInterrupt] = []


def ask_to_stop(request: KeyboardInterrupt) -> NoReturn:
    _asked[:] = [request]
    raise request


def heed() -> None:
    """Raise what was asked for and did not arrive."""
    if _asked:
        raise _asked[0]


def forget() -> None:
    """Of another command, in one process."""
    _asked.clear()
