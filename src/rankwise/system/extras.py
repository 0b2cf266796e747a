"""Optional libraries, which are imported only where they are needed, and versions of libraries."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from rankwise.errors import ConfigError, RankwiseError


def installs(extra: str) -> str:
    """The command that installs an extra, in quotes that every shell knows."""
    return f'pip install "rankwise[{extra}]", or in a clone of rankwise pip install -e ".[{extra}]"'


def need_extra(module: str, what: str, extra: str, error: type[RankwiseError]) -> None:
    """Refuse to go on without an optional library, and say how to install it."""
    if find_spec(module) is None:
        raise error(f"{what} needs {module}, which is not installed: {installs(extra)}.")


def check_installed(names: Iterable[str]) -> None:
    """ConfigError with the line that installs what is missing."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise ConfigError([
            f"logging to {name} needs {name}, which is not installed: {installs(name)}."
            for name in missing
        ])  # fmt: skip


@cache
def installed_version(package: str) -> str:
    """Read once: a package's description is a long text to look through."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
