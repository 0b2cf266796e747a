"""How every benchmark is asked and answers: --json for one object on stdout, --out for a file, else a table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def parser_of(docstring: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path)
    return parser


def tell(
    asked: argparse.Namespace, found: Any, show: Callable[[Any], None], kept: dict[str, Any] | None = None
) -> None:
    """`kept` goes into the file where that is more than what was found."""
    if asked.out:
        keep(asked.out, found if kept is None else kept)
    if asked.json:
        print(json.dumps(found))
    else:
        show(found)


def keep(title: Path, found: dict[str, Any]) -> None:
    """As TITLE.json, with what it was measured on."""
    from rankwise.runs.manifest import machine, versions

    facts = {"versions": versions(), "machine": {key: value for key, value in machine().items() if key != "system"}}
    title.parent.mkdir(parents=True, exist_ok=True)
    title.with_suffix(".json").write_text(json.dumps(found | facts, indent=2) + "\n")
