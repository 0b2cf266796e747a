"""The base model with a run's adapter in its weights, loaded again and compared with the trained model.

What is compared are the logits on a text that is always the same. Weights are merged in the format that the base's
files have, or in float32, and rounded once; a difference beyond what that rounding makes means another model, and
nothing is left of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rankwise.adapters.merging import merge
from rankwise.errors import AdapterError
from rankwise.models.loaded import LoadedModel
from rankwise.models.loading import load
from rankwise.models.saving import save, stored_dtype
from rankwise.run.directory import RunDirectory
from rankwise.run.receipt import RECEIPT
from rankwise.run.records import Announce, Said
from rankwise.run.writing import need_space, published, write_json
from rankwise.spec.models import ModelSpec
from rankwise.verbs.ask import open_for_asking

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.03}
"""Of the largest logit. On the starter rounding made 5e-6 in float32 and 0.01 in bfloat16."""
TEXT = "The river had risen in the night, and 27 boats lay on the grass. Nobody knew whose they were; the oldest of "
"us said: count the oars first, then ask. def count(oars): return sum(oars) // 2"


@dataclass(frozen=True)
class Merged:
    dtype: str
    logits_difference: float
    """The largest, from the trained model with its adapter beside it, as a share of the largest logit."""
    logits_change: float
    """The same from the base model: what the adapter does."""


def export_merged(
    run: RunDirectory, folder: Path, announce: Announce, base: ModelSpec, dtype: str | None, *, force_base: bool
) -> Merged:
    stored = stored_dtype(base, announce)
    wanted = stored if dtype is None else DTYPES[dtype]
    held = "bfloat16" if stored == torch.bfloat16 else "float32"
    spec = base.model_copy(update={"dtype": held})
    asked = open_for_asking(str(run.folder), announce, force_base=force_base, base=spec)
    live = _logits(asked.model)
    with asked.adapters.disabled():
        change = _difference(_logits(asked.model), live)
    merge(asked.adapters)
    need_space(folder.absolute(), sum(value.numel() for value in asked.model.module.parameters()) * wanted.itemsize)
    with published(folder) as temporary:
        announce(Said("Writing the merged model"))
        save(asked.model, temporary, wanted)
        write_json(temporary / RECEIPT, run.receipt().model_dump(mode="json"))
        del asked  # the merged one is loaded in its place
        difference = _difference(_logits(load(spec.model_copy(update={"name": str(temporary)}))), live)
        if not difference <= ALLOWED[wanted]:
            raise AdapterError(
                f"{folder} would not be the trained model: its logits differ by {difference:.2%} of the largest. "
                "Nothing is written; export the adapter as peft or portable."
            )
    return Merged(str(wanted).removeprefix("torch."), difference, change)


def _logits(model: LoadedModel) -> Tensor:
    ids = torch.tensor([model.tokenizer.encode(TEXT)], device=model.precision.device)
    with torch.inference_mode():
        return model.module(input_ids=ids).logits.double().cpu()


def _difference(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())
