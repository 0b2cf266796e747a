"""Ask one engine, in the interpreter that has it: one JSON object from stdin to the `answer` of the named module, and
what that returns, or its error, as one on stdout.

Of rankwise only this folder is known here, so an engine's file imports what needs no other package. A RuntimeError says
all in its words; other errors are understood only with their names. A ConnectionError means that nobody answered.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType


def main() -> None:
    folder, rankwise = Path(__file__).parent, ModuleType("rankwise")
    sys.path = [one for one in sys.path if one != str(folder)]  # its modules have the names of packages
    rankwise.__path__ = [str(folder.parent)]
    sys.modules["rankwise"] = rankwise
    result = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what an engine prints must not stand in the result
    try:
        reply = import_module(sys.argv[1]).answer(json.load(sys.stdin))
    except Exception as error:  # of any engine
        name = "" if type(error) in (RuntimeError, ConnectionError) else f"{type(error).__name__}: "
        reply = {"error": f"{name}{error}", "unreachable": isinstance(error, ConnectionError)}
    json.dump(reply, result)
    result.close()


if __name__ == "__main__":
    main()
