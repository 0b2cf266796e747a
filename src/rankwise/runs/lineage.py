"""The rounds that a result has behind it: the adapter that its training began with, and the one before that.

    base -> round 1 -> round 2 -> this run          lineage = (round 1, round 2), the earliest first

A run keeps them in its manifest. They also lie in `lineage.json` beside the adapter that it writes, so that a copy of
the folder still names them. Each round names its adapter by the hashes of its files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rankwise.config.base import Config

LINEAGE = "lineage.json"
"""Beside an adapter that began with another one."""


class Round(Config):
    """One earlier training. A value is None where the adapter's folder does not record it."""

    name: str
    """The run, or the adapter's folder."""
    method: str
    sha256: dict[str, str]
    """The hash of each of the adapter's files that a training reads, by name."""
    base: str | None = None
    base_fingerprint: str | None = None
    data_sha256: str | None = None
    """The hash of its data report (data_report.json)."""
    rows: int | None = None
    steps: int | None = None
    ended: str | None = None

    def describe(self, *, short: bool = False) -> str:
        """In a few words. `short` cuts a folder's path, which may name a person, to its last part."""
        facts = [
            self.method,
            "" if self.rows is None else f"{self.rows:,} rows",
            "" if self.steps is None else f"{self.steps:,} steps",
            "" if self.ended is None else f"ended {self.ended}",
        ]
        name = Path(self.name).name if short else self.name
        return f"{name} ({', '.join(filter(None, facts))})"


class Lineage(Config):
    """The content of lineage.json."""

    rounds: tuple[Round, ...]


def described(rounds: Sequence[Round], *, short: bool = False) -> str:
    """All rounds in one line, the earliest first."""
    return ", then ".join(one.describe(short=short) for one in rounds)
