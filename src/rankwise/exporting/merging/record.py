"""merge.json: what a merged folder was made of, and the SHA-256 of every file of it.

Hashes are those of whole files, of the base's weights the same that the hub shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rankwise.adapters.formats.dialects import detect
from rankwise.exporting.merging.plan import MergePlan
from rankwise.kernels.row_pieces import PIECE
from rankwise.system.extras import installed_version
from rankwise.system.files import sha256_of

RECORD = "merge.json"


def record_of(plan: MergePlan, files: dict[str, str]) -> dict[str, Any]:
    """`files` are the hashes of what was written: weights, index and config.json."""
    inputs, combining = plan.inputs, plan.inputs.combining
    return {
        "version": 1, "rankwise": installed_version("rankwise"), "base": inputs.source.name,
        "base_folder": str(inputs.source.folder.absolute()),
        "base_files": {file.name: sha256_of(file) for file in inputs.base.files},
        "adapters": [
            {"folder": str(part.artifact.result.absolute()), "weight": part.weight,
             "files": _hashes(part.artifact.result)}
            for part in inputs.parts
        ],
        "method": combining.kind, "density": combining.density, "drop": combining.drop, "seed": combining.seed,
        "rank": combining.rank, "error": combining.error, "strength": inputs.strength,
        "dtype": None if plan.dtype is None else plan.dtype.name, "piece": PIECE, "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(), "base_quantized": inputs.trained.name,
        "quantized_sha256": inputs.trained.sha256, "files": files,
    }  # fmt: skip


def _hashes(adapter: Path) -> dict[str, str]:
    source = detect(adapter).source
    return {file.name: sha256_of(file) for file in (source.settings, source.tensors) if file is not None}
