"""A run's folder by its name, and its own JSON files, read strictly: only a regular file of a sane size that parses as
its kind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from stat import S_ISREG
from typing import Any, TypeVar

from pydantic import ValidationError

from rankwise.config.base import Config
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Experiment
from rankwise.errors import ConfigError, RunError, did_you_mean, some

SETTINGS, MANIFEST = "config.json", "manifest.json"
LARGEST_JSON = 10_000_000
_Kind = TypeVar("_Kind", bound=Config)


def read_json(path: Path, kind: type[_Kind], largest: int = LARGEST_JSON) -> _Kind:
    """One of a run's own files, or a RunError that names what is wrong with it."""
    try:
        there = path.stat()
        if not S_ISREG(there.st_mode):  # a pipe would be waited for
            raise RunError(f"{path} is not a regular file.")
        if there.st_size > largest:
            raise RunError(f"{path} has {there.st_size:,} bytes; a run's own file is never that large.")
        return kind(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RunError(f"{path} is missing: this folder is not a complete run.") from None
    except (ValueError, TypeError, RecursionError, ValidationError, OSError) as error:
        if isinstance(error, RunError):
            raise
        detail = error.problems[0] if isinstance(error, ConfigError) else type(error).__name__
        raise RunError(f"{path} is damaged or was written by another version: {detail}") from None


def find_folder(name: str) -> Path | None:
    """That of a run, finished or not, by its name or its folder."""
    for folder in (Path("runs") / name, Path(name)):
        if os.path.isfile(folder / MANIFEST):  # noqa: PTH113  is_file raises where a name is too long
            return folder
    return None


def folder_of(name: str) -> Path:
    """That of a run which must be there, finished or not."""
    folder = find_folder(name)
    if folder is not None:
        return folder
    known = sorted(path.parent.name for path in Path("runs").glob("*/manifest.json"))
    listed = f" Runs here: {some(known)}." if known else " There are no runs in this folder yet."
    raise RunError(f'there is no run "{name}".{did_you_mean(name, known)}{listed}')


def read_experiment(folder: Path) -> Experiment:
    if not (folder / SETTINGS).exists() and (folder / "spec.json").exists():
        raise RunError(
            f"{folder} is a run of an earlier version of rankwise, which this version cannot read. Train it again, or "
            "use "
            f"its adapter by the adapter's folder ({folder / 'adapter'})."
        )
    return read_json(folder / SETTINGS, Experiment)


def data_here(experiment: Experiment, folder: Path) -> DataConfig:
    """Its settings of the data. Relative paths that are not here are those of the folder that holds `runs/`."""
    config = _resolved(experiment.data.model_dump(exclude_unset=True), folder)
    for name in ("sources", "validation"):
        if part := config.get(name):
            several = isinstance(part, list | tuple)
            config[name] = [_resolved(one, folder) for one in part] if several else _resolved(part, folder)
    return DataConfig(**config)


def _resolved(rows: dict[str, Any], folder: Path) -> dict[str, Any]:
    path = rows.get("path")
    if path is None or os.path.exists(path):  # noqa: PTH110
        return rows
    beside_runs = os.path.join(folder.absolute().parent.parent, path)  # noqa: PTH118
    return rows | {"path": beside_runs} if os.path.exists(beside_runs) else rows  # noqa: PTH110
