"""A run's own files: read strictly, and sealed where a training goes on from them.

A sealed folder has `state.json`, written last, with the size and SHA-256 of each other file, and a hash of itself.

    {"format": 2, "step": 40, …, "files": {"state.safetensors": {"bytes": 1024, "sha256": "…"}, …}, "sha256": "…"}

So a missing file, half a file, a flipped bit and a file of another step are all seen before anything is read. Format 1,
of earlier versions, has the tensors alone (`"tensors": {"bytes": …, "sha256": …}`).

Of the folders `step-N` of checkpoints and snapshots, only what is ours counts, and only that is removed. Ours is a
folder, not a link, whose sealed facts are of step N. Whatever else has such a name, like a copy, a link, a file or a
folder that was damaged, is passed over and never removed; where a step is to be saved under its name, it is renamed. A
folder is renamed before it is removed, so that no half of it is left under its name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar

from pydantic import ValidationError

from rankwise.config.base import Config, JsonObject
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Experiment
from rankwise.config.reading import as_named_now
from rankwise.errors import ConfigError, RunError, did_you_mean, some
from rankwise.system.files import move, sha256_of, told_when_full, write_json

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
        return kind(**json.loads(path.read_text(encoding="utf-8"), object_hook=as_named_now))
    except FileNotFoundError:
        raise RunError(f"{path} is missing: this folder is not a complete run.") from None
    except (ValueError, TypeError, RecursionError, ValidationError, OSError) as error:
        if isinstance(error, RunError):
            raise
        detail = error.problems[0] if isinstance(error, ConfigError) else type(error).__name__
        raise RunError(f"{path} is damaged or was written by another version: {detail}") from None


FACTS, TENSORS = "state.json", "state.safetensors"
FORMAT, EARLIER = 2, 1
LARGEST_FACTS = 10_000_000


class DamagedStep(RunError):
    """A file of a checkpoint or snapshot that is not what was written, and why."""

    def __init__(self, file: Path, why: str) -> None:
        super().__init__(f"{file} is damaged ({why}), so the run cannot be resumed. Use --restart to start it again.")
        self.file, self.why = file, why


def seal(folder: Path, facts: JsonObject) -> None:
    """Write the facts, with what each file of the folder has to be."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())}
    facts = {"format": FORMAT, **facts, "files": files}
    write_json(folder / FACTS, facts | {"sha256": hash_of(facts)})


@contextmanager
def _readable(file: Path) -> Iterator[int]:
    """The size of a file that is read inside; DamagedStep where it cannot be."""
    try:
        there = os.lstat(file)
        if not S_ISREG(there.st_mode):  # reading a pipe would block
            raise DamagedStep(file, "it is not a regular file")
        yield there.st_size
    except FileNotFoundError:
        raise DamagedStep(file, "it is missing") from None
    except OSError as error:
        raise DamagedStep(file, error.strerror or type(error).__name__) from None


def read_facts(folder: Path) -> JsonObject:
    """What `seal` wrote; DamagedStep where it did not write this."""
    file = folder / FACTS
    with _readable(file) as size:
        if size > LARGEST_FACTS:
            raise DamagedStep(file, "it is far too large")
        content = file.read_bytes()
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError):
        raise DamagedStep(file, "it is not JSON") from None
    if not isinstance(facts, dict) or facts.pop("sha256", None) != hash_of(facts):
        raise DamagedStep(file, "its content does not match its hash")
    if facts["format"] == EARLIER:
        return facts | {"files": {TENSORS: facts["tensors"]}}
    if facts["format"] != FORMAT:
        raise RunError(f"{file} has format {facts['format']}, but this version of rankwise reads format {FORMAT}.")
    return facts


def check_file(folder: Path, name: str, facts: JsonObject) -> None:
    """DamagedStep where a file is not what the facts say."""
    file, recorded = folder / name, facts["files"][name]
    with _readable(file) as size:
        if size != recorded["bytes"]:
            raise DamagedStep(file, f"it has {size:,} of {recorded['bytes']:,} bytes")
        if sha256_of(file) != recorded["sha256"]:
            raise DamagedStep(file, "its content does not match the recorded hash")


def with_hash(value: JsonObject) -> JsonObject:
    """A JSON object with a hash of itself added, as `state.json` has one."""
    facts = {name: one for name, one in value.items() if name != "sha256"}
    return facts | {"sha256": hash_of(facts)}


def hash_of(facts: JsonObject) -> str:
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


_STEP = re.compile(r"step-(0|[1-9][0-9]{0,14})")
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
        """Steps of the checkpoint folders that rankwise wrote, in order. Files inside them may be damaged."""
        return [step for step in self.named if self._is_ours(step)]

    def facts(self, step: int) -> JsonObject:
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
                    move(self.path(step), leaving)
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


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run at all, finished or not."""
    return all(os.path.isfile(folder / name) for name in (MANIFEST, SETTINGS))  # noqa: PTH113  is_file raises on long names


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


def data_here(data: DataConfig, folder: Path) -> DataConfig:
    """The data settings of a run. A relative path that does not exist here is looked for beside the folder `runs/`."""
    config = _resolved(data.model_dump(exclude_unset=True), folder)
    for name in ("sources", "validation"):
        if part := config.get(name):
            several = isinstance(part, list | tuple)
            config[name] = [_resolved(one, folder) for one in part] if several else _resolved(part, folder)
    return DataConfig(**config)


def _resolved(rows: JsonObject, folder: Path) -> JsonObject:
    path = rows.get("path")
    if path is None or os.path.exists(path):  # noqa: PTH110
        return rows
    beside_runs = os.path.join(folder.absolute().parent.parent, path)  # noqa: PTH118
    return rows | {"path": beside_runs} if os.path.exists(beside_runs) else rows  # noqa: PTH110
