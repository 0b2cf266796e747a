"""The command line, as a user types it."""

from __future__ import annotations

from click.testing import Result
from typer.testing import CliRunner

from rankwise.cli.main import app


def rankwise(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])
