"""Export of a merged model, verified by loading it again and comparing it with the trained model.

An adapter is merged into the weights of its base; a fully fine-tuned model is saved as it is. Merging runs on the CPU,
in float32 unless both the base's files and the export are bfloat16, and rounds once. Quantised weights of the base are
unpacked: those with the change in them, and all others. After reloading, every weight must
equal the merged one bit for bit, and the logits on a fixed text must equal the trained model's up to rounding;
otherwise the export is deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.base.saving import save, stored_as
from rankwise.errors import AdapterError, RunError
from rankwise.exporting.reference import open_for_export
from rankwise.kernels.quantized.tensor import unpack_weights
from rankwise.methods.artifact import BASE_FACTS, Artifact, recorded_training
from rankwise.objectives.objective import Objective
from rankwise.objectives.registry import objective_named
from rankwise.runs.data_report import DATA_REPORT
from rankwise.runs.evaluations import STRENGTH
from rankwise.runs.lineage import LINEAGE, Lineage
from rankwise.runs.manifest import TRAINING
from rankwise.runs.records import Callback, StatusMessage, WarningMessage, silent
from rankwise.system.files import need_space, published, write_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.03}
"""Accepted difference of logits, as a share of the largest. On the starter it was 5e-6 in float32 and 0.01 in
bfloat16."""
HIDDEN = 0.25
"""If rounding exceeds this share of the adapter's own change, a warning says that training may be partly lost."""
TEXT = "The river had risen in the night, and 27 boats lay on the grass. Nobody knew whose they were; the oldest of "
"us said: count the oars first, then ask. def count(oars): return sum(oars) // 2"


@dataclass(frozen=True)
class Merged:
    dtype: str
    logits_difference: float
    """The largest, from the trained model with its adapter beside it, as a share of the largest logit."""
    logits_change: float | None
    """Largest difference of the base model's logits from the trained model's, as a share of the latter's largest logit;
    None where no base is at hand."""
    rounding: float
    """Largest relative rounding error of the dtype."""

    @property
    def hidden(self) -> bool:
        """Whether rounding is large relative to the adapter's change."""
        return self.logits_change is not None and self.logits_difference > HIDDEN * self.logits_change


@dataclass(frozen=True)
class Order:
    """What is to be written of an artifact, which was checked when it was opened."""

    artifact: Artifact
    folder: Path
    """Where the export is written: a folder, or for some formats a file."""
    format: str
    callback: Callback = silent
    strength: float = 1.0
    dtype: str | None = None
    """The number format of a whole model; None for that of the base's files."""
    base_model: str | None = None
    """What an adapter names as its base, in place of its own."""
    round_rank: bool = False


def export_merged(order: Order, texts: Mapping[str, str] | None = None) -> Merged:
    """`texts` are further files, by name."""
    artifact, folder, callback = order.artifact, order.folder, order.callback
    if artifact.runs_own_code:
        raise RunError(f"{artifact.folder} was trained on a model with its own Python code, which cannot be merged. "
        "Export the adapter as peft or portable.")  # fmt: skip
    trained = artifact.model
    stored, numbers = stored_as(trained, callback)
    export_dtype = stored if order.dtype is None else DTYPES[order.dtype]
    need_space(folder.absolute(), numbers * export_dtype.itemsize)
    working_dtype = "bfloat16" if stored == export_dtype == torch.bfloat16 else "float32"
    spec = trained.model_copy(update={"dtype": working_dtype, "device": "cpu"})
    tuned = open_for_export(artifact, working_dtype, callback)
    objective = tuned.objective
    live, base = tuned.trainable.merge(order.strength, partial(_logits, tuned.model, objective))
    unpack_weights(tuned.model.module)
    objective, recorded = _as_read_elsewhere(objective, tuned.model.module, export_dtype)
    change = None if base is None else _difference(base, live)
    with published(folder) as temporary:
        callback(StatusMessage("Writing the merged model"))
        save(tuned.model, temporary, export_dtype)
        for file, value in extra_files(artifact, order.strength).items():
            write_json(temporary / file, value | (recorded if file == DATA_REPORT else {}))
        for file, text in (texts or {}).items():
            (temporary / file).write_text(text, encoding="utf-8")
        weights = _hashes(tuned.model)
        del tuned  # frees memory for the reloaded model
        again = load(spec.model_copy(update={"name": str(temporary), "quantize": "none"}), silent, objective.kind)
        difference, same = _difference(_logits(again, objective), live), _hashes(again) == weights
        del again  # it has the files mapped, and Windows renames none that is
        if not (same and difference <= ALLOWED[export_dtype]):
            raise AdapterError(
                f"{folder} would differ from the trained model: logits differ by {difference:.2%} of the largest, and "
                f"the weights {'equal' if same else 'differ from'} the merged ones. Nothing was written; export the "
                "adapter as peft or portable."
            )
    merged = Merged(str(export_dtype).removeprefix("torch."), difference, change, torch.finfo(export_dtype).eps / 2)
    if merged.hidden:
        callback(WarningMessage(
            f"{folder}: rounding to {merged.dtype} changes the logits by {difference:.2g} of the largest, and the "
            f"adapter by {change:.2g}, so much of the training may be lost. --dtype float32 avoids this"
        ))  # fmt: skip
    return merged


def extra_files(artifact: Artifact, strength: float) -> dict[str, Any]:
    """Return the JSON files to store beside the tensors, by file name."""
    data_report = {} if artifact.data_report is None else {DATA_REPORT: artifact.data_report.model_dump(mode="json")}
    facts = {} if artifact.trained_on is None else {BASE_FACTS: artifact.trained_on.model_dump(mode="json")}
    if (training := recorded_training(artifact.result)) is not None:
        data_report |= {TRAINING: training.model_dump(mode="json")}
    if artifact.lineage:
        data_report |= {LINEAGE: Lineage(rounds=artifact.lineage).model_dump(mode="json")}
    files = data_report | facts
    return files if strength == 1 else data_report | {STRENGTH: {"run": artifact.name, "strength": strength}}


def _as_read_elsewhere(objective: Objective, module: nn.Module, dtype: torch.dtype) -> tuple[Objective, dict[str, Any]]:
    """What an export of this module is read as by other software, and what that changes in the data report beside it;
    the module is made ready for it."""
    if objective.head is None:
        return objective, {}
    targets = objective.head.as_read_elsewhere(module, dtype)
    read = objective_named(objective.name, replace(objective.facts, targets=targets))
    return read, {"targets": targets.model_dump(mode="json")}


def _logits(model: LoadedModel, objective: Objective) -> Tensor:
    with torch.inference_mode():
        return objective.loss.sample_logits(model, TEXT).cpu().double()


def _hashes(model: LoadedModel) -> dict[str, str]:
    """Hash each weight, in the dtype of the model in memory."""
    held = model.precision.dtype
    return {
        name: sha256(value.detach().to(held).contiguous().view(torch.uint8).numpy().data).hexdigest()
        for name, value in model.module.named_parameters()
    }


def _difference(logits: Tensor, reference: Tensor) -> float:
    return float((logits - reference).abs().max() / reference.abs().max())
