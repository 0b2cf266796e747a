"""All screens, in the order of the navigation. A new one is a module with a `SCREEN`, and a line here."""

from __future__ import annotations

from rankwise.studio import ask, export, new_run, report, run, runs
from rankwise.studio.screen import Screen

SCREENS: tuple[Screen, ...] = (runs.SCREEN, new_run.SCREEN, ask.SCREEN, export.SCREEN, run.SCREEN, report.SCREEN)
