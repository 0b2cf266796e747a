"""merge.json: what a merged folder was made of, so that it can be replayed.

Hashes are SHA-256 of whole files, those of the base's weights the same that the hub shows. A folder without this file,
or with one of a later version, cannot be proved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rankwise.adapters.combining import Combining
from rankwise.adapters.formats.peft_reader import CONFIG, WEIGHTS
from rankwise.config.base import problems_of
from rankwise.errors import RunError
from rankwise.exporting.merging.plan import MergePlan
from rankwise.kernels.row_pieces import PIECE
from rankwise.runs.manifest import installed_version
from rankwise.system.files import sha256_of
from rankwise.system.foreign_json import read_json

RECORD = "merge.json"
Hashes = dict[str, str]
"""By the name of the file."""


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AdapterFacts(_Facts):
    folder: str
    weight: float
    files: Hashes


class MergeRecord(_Facts):
    version: Literal[1] = 1
    rankwise: str
    base: str
    """The base's name, and `base_folder`, where it lay."""
    base_folder: str
    base_files: Hashes
    adapters: list[AdapterFacts] = Field(min_length=1)
    method: Literal["linear", "ties", "dare", "svd"]
    density: float
    drop: float
    seed: int
    rank: int | None
    error: float | None
    strength: float
    dtype: str | None
    piece: int
    """Numbers in a piece."""
    torch: str
    processor: str
    """The instructions that the sums were computed with, which decide how they are rounded."""
    base_quantized: Literal["nf4", "int8"] | None = None
    """How the base's weights were stored that the change was added to, and the hash of their packed parts."""
    quantized_sha256: str | None = None
    files: Hashes
    """Those that were written: weights, index and config.json."""

    @property
    def combining(self) -> Combining:
        return Combining(self.method, self.density, self.drop, self.seed, self.rank, self.error)


def record_of(plan: MergePlan, written: dict[str, str]) -> MergeRecord:
    inputs, combining = plan.inputs, plan.inputs.combining
    return MergeRecord(
        rankwise=installed_version("rankwise"),
        base=inputs.source.name,
        base_folder=str(inputs.source.folder.absolute()),
        base_files={file.name: sha256_of(file) for file in inputs.base.files},
        adapters=[
            AdapterFacts(folder=str(part.artifact.result.absolute()), weight=part.weight,
                         files=adapter_hashes(part.artifact.result))
            for part in inputs.parts
        ],
        method=combining.kind, density=combining.density, drop=combining.drop, seed=combining.seed,
        rank=combining.rank, error=combining.error, strength=inputs.strength,
        dtype=None if plan.dtype is None else plan.dtype.name,
        base_quantized=inputs.trained.name, quantized_sha256=inputs.trained.sha256,
        piece=PIECE, torch=torch.__version__, processor=torch.backends.cpu.get_cpu_capability(), files=written,
    )  # fmt: skip


def adapter_hashes(folder: Path) -> Hashes:
    return {name: sha256_of(folder / name) for name in (CONFIG, WEIGHTS)}


def read_record(folder: Path) -> MergeRecord:
    if not (folder / RECORD).is_file():
        raise RunError(f"{folder} has no {RECORD}, so it was not written by rankwise merge and cannot be proved.")
    settings: dict[str, Any] = read_json(folder / RECORD)
    try:
        record = MergeRecord.model_validate(settings)
    except ValidationError as error:
        raise RunError(f"{folder / RECORD}: {'; '.join(problems_of(error, MergeRecord))}") from None
    if record.piece != PIECE:
        raise RunError(
            f"{folder / RECORD}: it was merged in pieces of {record.piece:,} numbers, and this version of rankwise "
            f"works in pieces of {PIECE:,}. Prove it with rankwise {record.rankwise}."
        )
    return record
