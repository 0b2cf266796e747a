"""A screen: routes of the page that belong together, and their entry in the navigation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.routing import BaseRoute


@dataclass(frozen=True)
class Screen:
    """`label` is its word in the navigation, which leads to `path`; without one it is reached from other screens."""

    routes: Sequence[BaseRoute]
    label: str | None = None
    path: str = "/"
