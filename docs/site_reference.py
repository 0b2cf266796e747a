"""The reference of Python: what `rankwise` and `rankwise.sklearn` export, from signatures and docstrings.

griffe reads the source and doesn't import it, so this needs neither torch nor an extra. Settings stand once, in
configuration.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

OPENING = """\
# Python reference

What `rankwise` and `rankwise.sklearn` export, from their docstrings. [python.md](python.md) shows how to use them.
"""
WIDEST = 100
ARGUMENT = re.compile(r", (?=\*{0,2}\w*(?:[:=,]|$))")
"""The comma before an argument, which no comma in the brackets of a type is."""


def signature(part: Any, name: str) -> str:
    """One line, or one for each argument where that is too long."""
    line = str(part.signature(name=name)).replace("(self, ", "(", 1).replace("(self)", "()", 1)
    if len(line) > WIDEST:
        given, _, returns = line.partition("(")[2].rpartition(")")
        line = "\n".join([f"{name}(", *(f"    {one}," for one in ARGUMENT.split(given)), f"){returns}"])
    return f"```python\n{line}\n```\n"


def described(name: str, part: Any) -> Iterator[str]:
    """A function, or a class with its methods and properties that have a docstring, also those of base classes."""
    yield f"### {name}\n"
    if part.is_attribute:
        yield f"Another name for `{part.value}`.\n"
        return
    settings = part.module.path.startswith("rankwise.config.")
    if not settings and (part.is_function or "__init__" in part.all_members):
        yield signature(part, name)
    yield f"{part.docstring.value if part.docstring else ''}\n"
    if settings:
        yield "[configuration.md](configuration.md) lists its settings.\n"
    elif part.is_class:
        for label, one in part.all_members.items():
            shown = one.docstring and not label.startswith("_")
            if shown and (one.is_function or "property" in one.labels):
                yield f"#### {name}.{label}\n"
                yield signature(one, label) if one.is_function else ""
                yield f"{one.docstring.value}\n"


def reference(source: Path) -> str:
    """The page. `source` is the folder in which the package is."""
    package: Any = griffe.load("rankwise", search_paths=[source])
    lines = [OPENING]
    for module in (package, package["sklearn"]):
        lines.append(f"## {module.path}\n")
        members = {name: one for name, one in module.members.items() if one.is_alias}
        for name in sorted(module.exports or members, key=str.casefold):
            if not name.startswith("_") and members[name].target_path.startswith("rankwise."):
                lines += described(name, members[name].final_target)
    return "\n".join(lines)
