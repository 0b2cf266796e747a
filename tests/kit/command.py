"""`rankwise WORDS` in this process: a fresh interpreter would import torch first, which takes seconds."""

from __future__ import annotations

import json
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from rankwise.cli.main import app


def rankwise(*words: object, typed: str | bytes | None = None) -> Result:
    """However it ends; `typed` is its standard input."""
    return CliRunner().invoke(app, [str(word) for word in words], input=typed)


def done(*words: object, typed: str | bytes | None = None) -> Result:
    """It ends well."""
    result = rankwise(*words, typed=typed)
    assert result.exit_code == 0, (result.output[-2000:], result.exception)
    return result


def printed(*words: object, typed: str | bytes | None = None) -> dict[str, Any]:
    """The one object that it prints with --json."""
    result = done(*words, "--json", typed=typed)
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)
