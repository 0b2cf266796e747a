"""The folders `step-N` of a run's checkpoints and snapshots: only what is ours counts, and only that is removed.

Ours is a folder, not a link, whose sealed facts (runs/sealed.py) are of step N. Whatever else has such a name, like a
copy, a link, a file or a folder that was damaged, is passed over and never removed; where a step is to be saved under
its name, it is renamed. A folder is renamed before it is removed, so that no half of it is left under its name.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import RunError
from rankwise.runs.sealed import DamagedStep, read_facts
from rankwise.system.files import told_when_full

_STEP = re.compile(r"step-([1-9][0-9]{0,14})")
_LEFT = re.compile(r"\.step-[0-9]+\.[0-9]+\.tmp")


def set_aside(path: Path) -> str:
    """Rename what is in the way of a file or folder of ours, and say so."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.aside-{number}")):
        number += 1
    with told_when_full(path):
        path.rename(aside)
    return f"{path} was in the way and is now {aside.name}"


@dataclass(frozen=True)
class StepFolders:
    folder: Path

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step}"

    @property
    def named(self) -> list[int]:
        """Every step whose name is there, whatever it names, in order."""
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(int(name[1]) for path in paths if (name := _STEP.fullmatch(path.name)))

    @property
    def steps(self) -> list[int]:
        """The steps of the folders that are ours, in order. Their other files may be damaged."""
        return [step for step in self.named if self._is_ours(step)]

    def facts(self, step: int) -> dict[str, Any]:
        """The sealed facts of a step; DamagedStep where its name is that of anything else."""
        path = self.path(step)
        if path.is_symlink():
            raise DamagedStep(path, "it is a link")
        if not path.is_dir():
            raise DamagedStep(path, "it is not a folder" if os.path.lexists(path) else "it is missing")
        facts = read_facts(path)
        if facts["step"] != step:
            raise DamagedStep(path / "state.json", f"it is of step {facts['step']}")
        return facts

    def forget(self, but: Collection[int] = ()) -> None:
        """Remove what is ours, and the folder itself if nothing is left in it."""
        for path in self.left:
            shutil.rmtree(path)
        for step in self.steps:
            if step not in but:
                leaving = self.folder / f".step-{step}.{os.getpid()}.tmp"
                with told_when_full(self.path(step)):
                    self.path(step).rename(leaving)
                shutil.rmtree(leaving)
        with suppress(OSError):  # something is left
            self.folder.rmdir()

    def make_way(self, step: int) -> list[str]:
        """Rename what is in the way of a step to be saved, be it under the name of the folder, and say so."""
        folder, path = self.folder, self.path(step)
        said = [set_aside(folder)] if os.path.lexists(folder) and not folder.is_dir() else []
        return said + ([set_aside(path)] if os.path.lexists(path) and not self._is_ours(step) else [])

    @property
    def left(self) -> list[Path]:
        """What a killed process was writing or removing."""
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        return [path for path in paths if _LEFT.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]

    def _is_ours(self, step: int) -> bool:
        try:
            self.facts(step)
        except (RunError, KeyError, TypeError):
            return False
        return True
