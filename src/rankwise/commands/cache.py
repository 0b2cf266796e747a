"""Show and clean the cache; everything in it can be made again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import ConfigError, did_you_mean
from rankwise.runs.cached import KINDS, OTHER, Cached, cached_entries, remove
from rankwise.system.cache import cache_folder

SECONDS = {"h": 3600, "d": 86_400, "w": 604_800}
_AGE = re.compile(r"(\d{1,6})([hdw])")


@dataclass(frozen=True)
class Cache:
    folder: Path
    entries: list[Cached]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries)


@dataclass(frozen=True)
class Cleaning:
    """Entries that are removed, and chosen entries that stay because they are in use."""

    removed: list[Cached]
    in_use: list[Cached]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.removed)

    def summary(self) -> dict[str, Any]:
        """What `rankwise cache clean --json` prints."""
        return {
            "bytes": self.bytes, "removed": [entry.path for entry in self.removed],
            "in_use": [{"path": entry.path, "why": entry.in_use} for entry in self.in_use],
        }  # fmt: skip


def cache() -> Cache:
    return Cache(cache_folder(), cached_entries())


def planned(kinds: Sequence[str] = (), older_than: str | None = None) -> Cleaning:
    """Return what cleaning would remove, without changing anything. Without `kinds`, all kinds are chosen."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ConfigError(
            [f'--kind {one}: there is no such kind.{did_you_mean(one, KINDS)} Kinds are {", ".join(KINDS)}.'
             for one in unknown]
        )  # fmt: skip
    age = 0.0 if older_than is None else seconds_of(older_than)
    chosen = [entry for entry in cached_entries()
              if entry.kind != OTHER and entry.kind in (kinds or KINDS) and entry.age >= age]  # fmt: skip
    return Cleaning(
        [entry for entry in chosen if entry.in_use is None], [entry for entry in chosen if entry.in_use is not None]
    )


def clean(kinds: Sequence[str] = (), older_than: str | None = None) -> Cleaning:
    planned_cleaning = planned(kinds, older_than)
    for entry in planned_cleaning.removed:
        remove(entry)
    return planned_cleaning


def seconds_of(age: str) -> float:
    """Parse an age such as `36h`, `30d` or `2w`."""
    parts = _AGE.fullmatch(age.strip())
    if parts is None:
        raise ConfigError([f'--older-than "{age[:40]}": give hours, days or weeks, such as 36h, 30d or 2w.'])
    return int(parts[1]) * SECONDS[parts[2]]
