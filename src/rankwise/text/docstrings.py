"""English that comes with every Python: the documentation inside the modules of its standard library.

The modules' source files are parsed, not imported, so nothing of them is executed. Short docstrings are left out, since
a line says little about how a model goes on writing.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from rankwise.errors import DataError

SHORTEST = 200
"""Characters of a docstring."""
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(folder: Path | None = None) -> list[str]:
    """Of the public modules of a folder, by default the standard library's, in the order of their names."""
    folder = folder or Path(sysconfig.get_paths()["stdlib"])
    texts = [text for file in sorted(folder.glob("[a-z]*.py")) for text in _documentation(file)]
    if not texts:
        raise DataError(
            "this Python comes without the source files of its standard library, whose documentation is the anchor's "
            "default text. Name another text with training.anchor.text."
        )
    return list(dict.fromkeys(texts))


def _documentation(file: Path) -> Iterator[str]:
    try:
        parsed = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):  # it would not be Python's own
        return
    for node in ast.walk(parsed):
        if isinstance(node, DOCUMENTED):
            text = ast.get_docstring(node)
            if text is not None and len(text) >= SHORTEST:
                yield text
