"""Run a driver once: one JSON object from stdin to `answer`, and what it returns, or its error, as one on stdout.

A RuntimeError says all in its words; other errors are understood only with their names. A ConnectionError means that
nobody was there to answer.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any


def run(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    result = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what an engine prints must not stand in the result
    try:
        reply = answer(json.load(sys.stdin))
    except Exception as error:  # of any engine
        name = "" if type(error) in (RuntimeError, ConnectionError) else f"{type(error).__name__}: "
        reply = {"error": f"{name}{error}", "unreachable": isinstance(error, ConnectionError)}
    json.dump(reply, result)
    result.close()
