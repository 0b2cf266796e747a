"""A merged model as a folder, whole or not at all, with the record of what it was made of.

The weights are written first, each file flushed to the disk, then what lies beside them, with config.json under another
name. Then the folder takes its name, and last of all config.json: only this makes the folder one that programs load.
A merge that is killed at any moment leaves a folder without config.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rankwise.errors import RunError
from rankwise.exporting.merging.apply import Applied, write_weights
from rankwise.exporting.merging.plan import MergePlan
from rankwise.exporting.merging.record import RECORD, record_of
from rankwise.exporting.merging.rounding import Rounding
from rankwise.exporting.merging.surroundings import CONFIG, write_surroundings
from rankwise.models.tensor_files import INDEX
from rankwise.runs.manifest import peak_rss
from rankwise.runs.records import Callback, StatusMessage
from rankwise.system.files import need_space, published, sha256_of, write_json

WAITING = f"{CONFIG}.unfinished"


@dataclass(frozen=True)
class MergedFolder:
    folder: str
    bytes: int
    dtype: str
    changed: int
    """Tensors that differ from the base's."""
    roundings: tuple[Rounding, ...]
    peak_bytes: int


def write_merged(plan: MergePlan, folder: Path, callback: Callback) -> MergedFolder:
    need_space(folder.absolute(), plan.nbytes)
    with published(folder) as temporary:
        applied = write_weights(plan, temporary, callback)
        config = write_surroundings(plan, temporary, callback)
        callback(StatusMessage("Recording what was merged"))
        write_json(temporary / WAITING, config)
        _write_record(plan, applied, temporary)
    (folder / WAITING).replace(folder / CONFIG)
    return MergedFolder(
        str(folder), sum(file.bytes for file in applied.files), plan.formats, len(plan.changed), applied.roundings,
        peak_rss(),
    )  # fmt: skip


def _write_record(plan: MergePlan, applied: Applied, folder: Path) -> None:
    files = {file.name: file.sha256 for file in applied.files} | {CONFIG: sha256_of(folder / WAITING)}
    if (folder / INDEX).is_file():
        files[INDEX] = sha256_of(folder / INDEX)
    write_json(folder / RECORD, record_of(plan, files))


def refuse_unfinished(folder: Path) -> None:
    """RunError where a merge into this folder was killed in its last moment."""
    if (folder / WAITING).is_file():
        raise RunError(f"{folder} was left by a merge that was killed before it was done. Remove it and merge again.")
