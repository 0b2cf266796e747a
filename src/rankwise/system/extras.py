"""Optional libraries, which are imported only where they are needed, and versions of libraries."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from rankwise.errors import RankwiseError


def installs(extra: str) -> str:
    """The command that installs an extra, in quotes that every shell knows."""
    return f'pip install "rankwise[{extra}]", or in a clone of rankwise pip install -e ".[{extra}]"'


def need_extra(module: str, what: str, extra: str, error: type[RankwiseError]) -> None:
    """Refuse to go on without an optional library, and say how to install it."""
    if find_spec(module) is None:
        raise error(f"{what} needs {module}, which is not installed: {installs(extra)}.")


@cache
def installed_version(package: str) -> str:
    """Read once: a package's description is a long text to look through."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
