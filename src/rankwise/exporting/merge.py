"""A run's model without any adapter over it, loaded again from the disk and compared with the trained model.

An adapter goes into its base's weights; where the whole model learned there is none. It is done on the processor, in
float32 unless both the base's files and the new ones are bfloat16, and rounded once. Read back, every weight must be
the merged one bit for bit, and the logits on a text that is always the same must be the trained model's but for
rounding; else nothing is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankwise.errors import AdapterError, RunError
from rankwise.inference.tuned_model import load_tuned
from rankwise.methods.artifact import Artifact
from rankwise.methods.base import BASE_FACTS
from rankwise.methods.registry import method_of
from rankwise.models.loaded import LoadedModel
from rankwise.models.loading import load
from rankwise.models.saving import save, stored_as
from rankwise.runs.data_report import DATA_REPORT
from rankwise.runs.evaluations import STRENGTH
from rankwise.runs.records import Callback, StatusMessage, WarningMessage
from rankwise.system.files import need_space, published, write_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.03}
"""Of the largest logit. On the starter rounding made 5e-6 in float32 and 0.01 in bfloat16."""
HIDDEN = 0.25
"""Of an adapter's own change: where rounding makes more than this, much of what was learned may be lost."""
TEXT = "The river had risen in the night, and 27 boats lay on the grass. Nobody knew whose they were; the oldest of "
"us said: count the oars first, then ask. def count(oars): return sum(oars) // 2"


@dataclass(frozen=True)
class Merged:
    dtype: str
    logits_difference: float
    """The largest, from the trained model with its adapter beside it, as a share of the largest logit."""
    logits_change: float | None
    """The same from the base model: what an adapter does."""
    rounding: float
    """By how much of itself the number format may round a weight, to hold the difference against."""

    @property
    def hidden(self) -> bool:
        """Whether rounding is not small beside what was learned."""
        return self.logits_change is not None and self.logits_difference > HIDDEN * self.logits_change


def export_merged(
    artifact: Artifact, folder: Path, callback: Callback, dtype: str | None, strength: float = 1.0, *, force_base: bool
) -> Merged:
    """Of an artifact that was opened, and so checked."""
    if artifact.run is not None and artifact.run.experiment().model.trust_code is not None:
        raise RunError(f"{artifact.folder} was trained on a model with Python code of its own, which cannot be "
                       "exported as merged. Export the adapter as peft or portable.")  # fmt: skip
    trained = method_of(artifact.config).model_of(artifact)
    stored, numbers = stored_as(trained, callback)
    wanted = stored if dtype is None else DTYPES[dtype]
    need_space(folder.absolute(), numbers * wanted.itemsize)
    held = "bfloat16" if stored == wanted == torch.bfloat16 else "float32"
    spec = trained.model_copy(update={"dtype": held, "device": "cpu"})
    tuned = load_tuned(artifact, callback, force_base=force_base, spec=spec)
    live, base = tuned.trainable.merge(strength, partial(_logits, tuned.model))
    change = None if base is None else _difference(base, live)
    with published(folder) as temporary:
        callback(StatusMessage("Writing the merged model"))
        save(tuned.model, temporary, wanted)
        for file, value in beside(artifact, strength).items():
            write_json(temporary / file, value)
        weights = _hashes(tuned.model)
        del tuned  # the merged one is loaded in its place
        again = load(spec.model_copy(update={"name": str(temporary)}))
        difference, same = _difference(_logits(again), live), _hashes(again) == weights
        if not (same and difference <= ALLOWED[wanted]):
            raise AdapterError(
                f"{folder} would not be the trained model: its logits differ by {difference:.2%} of the largest, and "
                f"its weights are {'as merged' if same else 'not those that were merged'}. Nothing is written; export "
                "the adapter as peft or portable."
            )
    made = Merged(str(wanted).removeprefix("torch."), difference, change, torch.finfo(wanted).eps / 2)
    if made.hidden:
        callback(WarningMessage(
            f"{folder}: rounding to {made.dtype} changes the logits by {difference:.2g} of the largest and the adapter "
            f"by {change:.2g}, so much of what was learned may be lost. --dtype float32 keeps it"
        ))  # fmt: skip
    return made


def beside(artifact: Artifact, strength: float) -> dict[str, Any]:
    """What lies in an exported folder as JSON beside the tensors, by file name."""
    data_report = {} if artifact.data_report is None else {DATA_REPORT: artifact.data_report.model_dump(mode="json")}
    facts = {} if artifact.trained_on is None else {BASE_FACTS: artifact.trained_on.model_dump(mode="json")}
    files = data_report | facts
    return files if strength == 1 else data_report | {STRENGTH: {"run": artifact.name, "strength": strength}}


def _logits(model: LoadedModel) -> Tensor:
    ids = torch.tensor([model.tokenizer.encode(TEXT)], device=model.precision.device)
    with torch.inference_mode():
        return model.module(input_ids=ids).logits.cpu().double()


def _hashes(model: LoadedModel) -> dict[str, str]:
    """Of each weight, in the number format that the model is held in."""
    held = model.precision.dtype
    return {
        name: sha256(value.detach().to(held).contiguous().view(torch.uint8).numpy().data).hexdigest()
        for name, value in model.module.named_parameters()
    }


def _difference(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())
