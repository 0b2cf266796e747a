"""Integrity of a run: the SHA-256 of each file is recorded and compared before use, or on request of all files.

The manifest of a finished run has the hash of every file of `adapter/` or `model/`, of `data_report.json`, which holds
the chat template and system message, of the settings and of the metrics log. Every command that reads a result calls
`check_result` first. Files that programs load (weights, settings, tokenizer, template) must be present and unchanged,
and none may have been added. A changed model card or metrics log is only reported. This detects accidents and careless
edits. It is not a signature: whoever can write to the folder can also change the manifest. `rankwise sign` makes one,
and `rankwise verify` compares by the same code.

The manifest, evaluations, the data of reports (with the hash of their page), checkpoints and snapshots have hashes of
their own, which `verify` compares too. The settings of a run that is not finished have none; they must be readable.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rankwise.config.experiment import Experiment
from rankwise.errors import RankwiseError, ResultError, RunError, first_line, some
from rankwise.runs.data_report import DATA_REPORT, DataReport
from rankwise.runs.directory import RESULTS, SETTINGS, SIGNATURE, RunDirectory
from rankwise.runs.evaluations import FOLDER
from rankwise.runs.own_files import (
    MANIFEST,
    DamagedStep,
    StepFolders,
    check_file,
    hash_of,
    is_run,
    read_json,
    with_hash,
)
from rankwise.runs.records import Callback, StatusMessage, WarningMessage
from rankwise.runs.resumable import METRICS
from rankwise.runs.snapshot import RunSnapshot
from rankwise.system.files import sha256_of

LOADED = {".safetensors", ".json", ".jinja", ".model", ".bin", ".pt", ".py"}
LOADED_NAMES = {"vocab.txt", "merges.txt"}
FORCE = "or use --force-result (force_result=True in Python) to read the result as it is"
COPY = "or copy the folder out of the run to use it as it is"


@dataclass(frozen=True)
class Integrity:
    """Differences between the files of a result and the recorded hashes. Paths are relative to the run's folder."""

    status: Literal["verified", "changed", "not recorded"]
    files: int = 0
    """Number of files with a recorded hash."""
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    """Files that changed, are missing or were added, but are not loaded by programs."""

    def problems(self, folder: Path, way_out: str = FORCE) -> list[str]:
        """Describe each problem in a sentence that says what to do."""
        restore, remove = f"Restore it from a copy, {way_out}.", f"Remove it, {way_out}."
        return [
            *(f"{folder / name} was changed after training: its SHA-256 differs from the recorded one. {restore}"
              for name in self.changed),
            *(f"{folder / name} is missing. {restore}" for name in self.missing),
            *(f"{folder / name} was added after training. {remove}" for name in self.added),
        ]  # fmt: skip


def hashes_of(folder: Path, result: Path) -> dict[str, str]:
    """The SHA-256 of every file of a result that is whole, of the data report and of the metrics log, by path in the
    run's folder."""
    return {name: sha256_of(folder / name) for name in _files(folder, result)}


def settings_hash(folder: Path) -> str | None:
    """The hash of the run's settings without its name, which may change. None where they cannot be read."""
    with suppress(OSError, ValueError, RecursionError):
        settings = json.loads((folder / SETTINGS).read_bytes())
        if isinstance(settings, dict):
            return hash_of({key: value for key, value in settings.items() if key != "run"})
    return None


def check_result(run: RunSnapshot, callback: Callback, *, force: bool = False, way_out: str = FORCE) -> Integrity:
    """Refuse a result that is not what training wrote, all its files at once; with `force`, warn and go on."""
    found = compare_result(run)
    if problems := found.problems(run.folder, way_out):
        if not force:
            raise ResultError("\n".join(problems))
        differing = some([*found.changed, *found.missing, *found.added], 8)
        callback(WarningMessage(f'the result of run "{run.folder.name}" is not what training wrote: {differing}'))
    if found.other:
        callback(StatusMessage(f"changed since training, but not loaded by programs: {some(found.other, 8)}"))
    if found.status == "not recorded":
        callback(
            StatusMessage(f'run "{run.folder.name}" is from an earlier version without hashes, so its result is '
                 "not checked")
        )  # fmt: skip
    return found


def check_folder(folder: Path, callback: Callback) -> Integrity | None:
    """Check a result that is named by its own folder, also as "." or by a link. None where it belongs to no run."""
    for path in (Path(os.path.abspath(folder)), folder.resolve()):  # noqa: PTH100  the link itself may lie in a run
        if path.name not in RESULTS or not is_run(path.parent):
            continue
        run = RunSnapshot.of(RunDirectory(path.parent))
        if run.result.name == path.name:
            return check_result(run, callback, way_out=COPY)
    return None


def compare_result(run: RunSnapshot) -> Integrity:
    recorded = run.manifest.result_sha256
    if recorded is None:
        return Integrity("not recorded")
    if not run.result.is_dir():
        return Integrity("changed", len(recorded), missing=(run.result.name,))
    signature = (run.result / SIGNATURE).relative_to(run.folder).as_posix()
    there = [name for name in _files(run.folder, run.result) if name in recorded or name not in (METRICS, signature)]
    changed, missing, added = compare(run.folder, recorded, there)
    known = run.manifest.settings_sha256
    changed += [SETTINGS] * (known is not None and known != settings_hash(run.folder))
    strict = [tuple(filter(_is_loaded, names)) for names in (changed, missing, added)]
    other = tuple(name for names in (changed, missing, added) for name in names if not _is_loaded(name))
    status = "changed" if any(strict) else "verified"
    return Integrity(
        status, len(recorded) + (known is not None), changed=strict[0], missing=strict[1], added=strict[2], other=other
    )


def compare(folder: Path, recorded: Mapping[str, str], there: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """The names of the files of a folder that changed, are missing, and were added since their hashes were recorded."""
    changed = [name for name in there if name in recorded and _differs(folder / name, recorded, name)]
    return changed, sorted(recorded.keys() - set(there)), [name for name in there if name not in recorded]


def _differs(path: Path, recorded: Mapping[str, str], name: str) -> bool:
    try:
        return not path.is_file() or sha256_of(path) != recorded[name]
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}), so its hash cannot be checked.") from None


def _is_loaded(name: str) -> bool:
    """Tell whether programs load the file. Hidden files belong to the system, such as macOS's on foreign disks."""
    path = Path(name)
    return not path.name.startswith(".") and (path.suffix.lower() in LOADED or path.name in LOADED_NAMES)


def files_in(folder: Path) -> list[str]:
    """The names of all that lies in a folder and is no folder itself, whatever its kind; a link to a folder is none."""
    inside = [
        os.path.join(parent, name)  # noqa: PTH118
        for parent, folders, names in os.walk(folder)
        for name in (*names, *(one for one in folders if os.path.islink(os.path.join(parent, one))))  # noqa: PTH114, PTH118
    ]
    return sorted(Path(path).relative_to(folder).as_posix() for path in inside)


def _files(folder: Path, result: Path) -> list[str]:
    found = [f"{result.relative_to(folder).as_posix()}/{name}" for name in files_in(result)]
    return sorted(found + [name for name in (DATA_REPORT, METRICS) if (folder / name).is_file()])


FINISHED = "finished"
CHANGED = "is missing or is not what was written: it does not match its recorded hash."


@dataclass(frozen=True)
class VerifiedRun:
    """`files` is the number of files whose hash was compared; `recorded` is False for results of versions without."""

    name: str
    files: int
    recorded: bool
    problems: tuple[str, ...]
    left: tuple[str, ...] = ()
    """Folders in a finished run that a killed training was about to remove."""


def verify(run: RunDirectory) -> VerifiedRun:
    problems: list[str] = []
    files, recorded, left = 0, True, list[str]()
    for name, kind in ((SETTINGS, Experiment), (DATA_REPORT, DataReport)):
        try:
            read_json(run.folder / name, kind)
        except RankwiseError as error:
            problems.append(str(error))
    try:
        snapshot = RunSnapshot.of(run)
        if snapshot.manifest.status == FINISHED:
            integrity = compare_result(snapshot)
            problems += integrity.problems(run.folder)
            known = snapshot.manifest.result_sha256 or {}
            problems += [f"{run.folder / name} {CHANGED}" for name in integrity.other if name in known]
            files, recorded = integrity.files, integrity.status != "not recorded"
            for folders in (run.checkpoints, run.snapshots):
                left += map(str, [*folders.left, *map(folders.path, folders.steps)])
    except RankwiseError as error:
        problems.append(str(error))
    checked = [_step(folders, step) for folders in (run.checkpoints, run.snapshots) for step in folders.named]
    hashed = (MANIFEST, f"{FOLDER}/*.json", "report.json", "against-*.json")
    checked += map(_with_own_hash, sorted(file for pattern in hashed for file in run.folder.glob(pattern)))
    files += sum(compared for compared, _ in checked)
    problems += [problem for _, found in checked for problem in found]
    return VerifiedRun(run.folder.name, files, recorded, tuple(dict.fromkeys(problems)), tuple(left))


def _with_own_hash(file: Path) -> tuple[int, list[str]]:
    """Whether a file has a hash of itself, which earlier versions did not write, and what is wrong with it."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return 0, [f"{file} cannot be read: {first_line(error)}."]
    if not isinstance(content, dict) or "sha256" not in content:
        return 0, []
    page = file.with_suffix(".html")
    wrong = [file] * (content != with_hash(content))
    if "page_sha256" in content and page.is_file() and sha256_of(page) != content["page_sha256"]:
        wrong.append(page)
    return 1 + ("page_sha256" in content), [f"{one} {CHANGED}" for one in wrong]


def _step(folders: StepFolders, step: int) -> tuple[int, list[str]]:
    """Files compared in a step's folder, and the first that is not what was written."""
    compared = 0
    try:
        facts = folders.facts(step)
        for name in facts["files"]:
            check_file(folders.path(step), name, facts)
            compared += 1
    except DamagedStep as damage:
        if not os.path.lexists(folders.path(step)):  # a training that goes on has removed it
            return compared, []
        return compared, [f"{damage.file} is damaged: {damage.why}. --resume passes over it."]
    except RankwiseError as error:
        return compared, [str(error)]
    return compared, []
