"""An adapter as a folder of its own: `peft`, `portable` and `mlx`, without its base model.

At a strength other than 1 the change is so many times what was trained. That goes into B, which every engine reads, and
into no setting. What was written is read back and compared before it takes its name.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from rankwise.adapters.formats.peft import as_lora, rewrite
from rankwise.adapters.weights import AdapterWeights, check_same
from rankwise.exporting.engine_rules import VLLM_RANKS
from rankwise.exporting.merge import beside
from rankwise.exporting.mlx import write_mlx
from rankwise.methods.adapter_folder import filled_by_export
from rankwise.methods.artifact import Artifact
from rankwise.methods.registry import method_of
from rankwise.methods.stored_adapter import stored_weights
from rankwise.models.rotary_names import missing_names
from rankwise.models.sources import LOCAL
from rankwise.runs.manifest import BaseModelFacts
from rankwise.runs.records import Callback, WarningMessage
from rankwise.system.files import need_space, told_when_full
from rankwise.system.hub import could_be_hub_id

FORMATS = ("peft", "portable", "mlx")


def export_adapter(
    artifact: Artifact, folder: Path, format: str, strength: float, base_model: str | None, callback: Callback, *,
    round_rank: bool,
) -> AdapterWeights:  # fmt: skip
    """Write the adapter, whole or not at all, and return what was written. It names `base_model` as its base."""
    method_of(artifact.config).check_export(format, artifact.folder)
    artifact = replace(artifact, trained_on=_renamed(artifact.trained_on, base_model))
    files = beside(artifact, strength)
    stored = _with_base(stored_weights(artifact, callback), base_model)
    stored = as_lora(stored, empty=format == "portable")
    scaled = stored.scaled(strength)
    written = scaled if format == "peft" else scaled.portable(VLLM_RANKS if round_rank else ())
    check_same(written, _with_scale(stored, strength), folder)
    with told_when_full(folder):
        need_space(folder.absolute(), sum(value.nbytes for part in written.factors.values() for value in part.values))
        write = write_mlx if format == "mlx" else rewrite
        write(written, folder, files, filled_by_export(artifact, written, _change(format, strength), callback))
    if format == "mlx":
        _tell_of_angles(Path(str(written.settings.get("base_model_name_or_path"))), callback)
    return written


def _tell_of_angles(base: Path, callback: Callback) -> None:
    """A base in a folder here is the one that mlx-lm will load."""
    if missing := missing_names(base):
        callback(WarningMessage(
            f"{base / 'config.json'} has rope_parameters and lacks {', '.join(missing)}, which mlx-lm reads for most "
            f"models. Its own default may be another, and it says nothing. Add {json.dumps(missing)} to the file, or "
            "use --format merged, which writes both"
        ))  # fmt: skip


def _change(format: str, strength: float) -> str:
    """What the model card says of how this adapter differs from the run's own."""
    uniform = "" if format == "peft" else "It was exported with one rank and one scale for all layers."
    turned = f"It was exported at strength {strength:g}: the trained change is multiplied by this number."
    return " ".join(filter(None, (uniform, turned if strength != 1 else "")))


def _renamed(facts: BaseModelFacts | None, base_model: str | None) -> BaseModelFacts | None:
    """What is recorded of the base, under the name that it is given: the old one may be a path of this machine."""
    if facts is None or base_model is None:
        return facts
    on_hub = could_be_hub_id(base_model) and not os.path.exists(base_model)  # noqa: PTH110  it may be no path
    return facts.model_copy(update={"name": base_model, "source": "hub, as named at export" if on_hub else LOCAL})


def _with_base(stored: AdapterWeights, base_model: str | None) -> AdapterWeights:
    """Give the base another name: a hub id, or where it lies on the machine that will load it."""
    if base_model is None:
        return stored
    return replace(stored, settings={**stored.settings, "base_model_name_or_path": base_model, "revision": None})


def _with_scale(stored: AdapterWeights, strength: float) -> AdapterWeights:
    """Put the strength into the scale of each layer, to compare with."""
    factors = {path: replace(part, scale=part.scale * strength) for path, part in stored.factors.items()}
    return replace(stored, factors=factors)
