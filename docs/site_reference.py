"""The reference of Python: what `rankwise` and `rankwise.sklearn` export, from signatures and docstrings.

The source is read and not imported, so this needs neither torch nor an extra. Settings stand once, in configuration.md.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

OPENING = """\
# Python reference

What `rankwise` and `rankwise.sklearn` export, from their docstrings. [python.md](python.md) shows how to use them.
"""
WIDEST = 100
Definition = ast.FunctionDef | ast.ClassDef


@cache
def tree(source: Path, module: str) -> ast.Module:
    path = source.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def imported(module: ast.Module) -> dict[str, str]:
    """Names with the modules of ours that they come from."""
    lines = [line for line in ast.walk(module) if isinstance(line, ast.ImportFrom) and line.module]
    return {
        one.name: str(line.module) for line in lines for one in line.names if str(line.module).startswith("rankwise.")
    }


def found(source: Path, module: str, name: str) -> tuple[Definition | None, str]:
    """What a name of a module is defined as, and in which module."""
    parts = tree(source, module)
    for part in parts.body:
        if isinstance(part, Definition) and part.name == name:
            return part, module
    home = imported(parts).get(name)
    return found(source, home, name) if home else (None, module)


def members(source: Path, part: ast.ClassDef, module: str) -> dict[str, ast.FunctionDef]:
    """Methods and properties with a docstring, also those of base classes."""
    own: dict[str, ast.FunctionDef] = {}
    for base in reversed(part.bases):
        above, home = found(source, module, ast.unparse(base).partition("[")[0])
        if isinstance(above, ast.ClassDef):
            own |= members(source, above, home)
    return own | {one.name: one for one in part.body if isinstance(one, ast.FunctionDef)}


def signature(part: ast.FunctionDef, *, method: bool = False) -> str:
    """One line, or one for each argument where that is too long."""
    given = [_spaced(one.strip()) for one in _parted(ast.unparse(part.args))]
    given = given[method and not _has(part, "staticmethod") :]
    returns = f" -> {ast.unparse(part.returns)}" if part.returns else ""
    line = f"{part.name}({', '.join(given)}){returns}"
    if len(line) > WIDEST:
        line = "\n".join([f"{part.name}(", *(f"    {one}," for one in given), f"){returns}"])
    return f"```python\n{line}\n```\n"


def _spaced(argument: str) -> str:
    """An argument with a type and a default, as it is usually written."""
    return argument.replace("=", " = ", 1) if ":" in argument.partition("=")[0] else argument


def _has(part: ast.FunctionDef, decorator: str) -> bool:
    return any(decorator in ast.unparse(one) for one in part.decorator_list)


def _parted(text: str) -> Iterator[str]:
    """Arguments, divided at the commas that stand in no brackets."""
    depth = begun = 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            yield text[begun:place]
            begun = place + 1
    if text:
        yield text[begun:]


def described(source: Path, name: str, part: Definition, module: str) -> Iterator[str]:
    yield f"### {name}\n"
    if isinstance(part, ast.FunctionDef):
        yield signature(part)
    yield f"{ast.get_docstring(part) or ''}\n"
    if module.startswith("rankwise.config."):
        yield "[configuration.md](configuration.md) lists its settings.\n"
    if isinstance(part, ast.FunctionDef) or module.startswith("rankwise.config."):
        return
    own = members(source, part, module)
    if "__init__" in own:
        begin = own["__init__"]
        yield signature(ast.FunctionDef(name, begin.args, [], begin.decorator_list), method=True)
    for label, one in own.items():
        words = ast.get_docstring(one)
        if label.startswith("_") or not words:
            continue
        yield f"#### {name}.{label}\n"
        if not _has(one, "property"):
            yield signature(one, method=True)
        yield f"{words}\n"


def assigned(source: Path, module: str, name: str) -> ast.expr:
    """The value that a name of a module is given."""
    given = [one for one in tree(source, module).body if isinstance(one, ast.Assign)]
    return next(one.value for one in given if ast.unparse(one.targets[0]) == name)


def reference(source: Path) -> str:
    """The page. `source` is the folder in which the package is."""
    homes = ast.literal_eval(assigned(source, "rankwise", "_HOMES"))
    estimators = ast.literal_eval(assigned(source, "rankwise.sklearn", "__all__"))
    lines = [OPENING]
    for package, names in (("rankwise", homes), ("rankwise.sklearn", dict.fromkeys(estimators, "rankwise.sklearn"))):
        lines.append(f"## {package}\n")
        for name in sorted(names, key=str.casefold):
            part, module = found(source, names[name], name)
            if part is None:
                lines.append(f"### {name}\n\nAnother name for `{ast.unparse(assigned(source, module, name))}`.\n")
            else:
                lines += described(source, name, part, module)
    return "\n".join(lines)
