"""The files of the package and their syntax trees, parsed once for all tests of a process."""

from __future__ import annotations

import ast
from pathlib import Path

import rankwise

SOURCE = Path(rankwise.__file__).parent
FILES = {str(path.relative_to(SOURCE)): path for path in sorted(SOURCE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
