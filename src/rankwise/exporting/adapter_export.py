"""An adapter as a folder of its own: `peft`, `portable` and `mlx`, without its base model.

At a strength other than 1 the change is so many times what was trained. That goes into B, which every engine reads, and
into no setting. What was written is read back and compared before it takes its name.

mlx-lm's format holds one rank and the scale 1 for all layers:

    adapters.safetensors    path.lora_a = A^T (I, r)      path.lora_b = B^T (r, O)
    adapter_config.json     fine_tune_type lora, num_layers, lora_parameters {rank, scale 1, dropout 0, keys}

mlx-lm lays factors over the layers in `keys`, which are named inside a block or, outside the blocks, by their whole
path, and then reads the tensors. A layer in `keys` without tensors gets factors that change nothing. mlx-lm names the
layers of a block as transformers does, below `model.layers`; an adapter of a model with other names is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import regex
from safetensors.torch import save_file
from torch import Tensor

from rankwise.adapters.formats.dialects import read_adapter
from rankwise.adapters.formats.mlx import WEIGHTS
from rankwise.adapters.formats.peft import as_lora, rewrite
from rankwise.adapters.formats.peft_reader import CONFIG
from rankwise.adapters.weights import AdapterWeights, check_same
from rankwise.base.beside import copy_reader
from rankwise.base.rotary_names import missing_names
from rankwise.base.sources import LOCAL
from rankwise.errors import AdapterError, RunError, some
from rankwise.exporting.engines.vllm import RANKS
from rankwise.exporting.merge import Order, extra_files
from rankwise.methods.artifact import Artifact, recorded_base, stored_weights
from rankwise.methods.model_card import UNKNOWN, CardFacts, card
from rankwise.runs.directory import CARD
from rankwise.runs.manifest import BaseModelFacts
from rankwise.runs.records import Callback, WarningMessage
from rankwise.system.files import need_space, published, told_when_full, write_atomic, write_json
from rankwise.system.hub import could_be_hub_id

FORMATS = ("peft", "portable", "mlx")
IN_BLOCK = regex.compile(r"model\.layers\.(?P<block>\d+)\.(?P<key>.+)")
OUTSIDE = ("lm_head", "model.embed_tokens")
MATRIX = 2
LARGEST_CARD = 1_000_000
"""Bytes."""


def export_adapter(order: Order) -> AdapterWeights:
    """Write the adapter, whole or not at all, and return what was written."""
    folder, format, strength, callback = order.folder, order.format, order.strength, order.callback
    artifact = replace(order.artifact, trained_on=_renamed(order.artifact.trained_on, order.base_model))
    files = extra_files(artifact, strength)
    stored = _with_base(stored_weights(artifact, callback), order.base_model)
    stored = as_lora(stored, empty=format == "portable")
    scaled = stored.scaled(strength)
    written = scaled if format == "peft" else scaled.portable(RANKS if order.round_rank else ())
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


def write_mlx(
    weights: AdapterWeights, folder: Path, extra_files: Mapping[str, Any], fill: Callable[[Path], None] | None = None
) -> None:
    """Write an adapter as `AdapterWeights.portable` makes it, whole or not at all, and read it back before the folder
    takes its name. AdapterError where mlx-lm could not express it."""
    problems = [
        f'"{path}" has a name that mlx-lm may not know; known are {", ".join(OUTSIDE)} and layers of model.layers'
        for path in weights.factors
        if path not in OUTSIDE and not IN_BLOCK.fullmatch(path)
    ]
    problems += [
        f'"{path}" {"holds all experts of a block" if part.experts else "is a convolution"}'
        for path, part in weights.factors.items()
        if part.A.ndim != MATRIX
    ]
    problems += [f'"{name}" was trained whole, which this format does not hold' for name in weights.heads]
    if not weights.factors:
        problems.append("no layer has an adapter")
    if problems:
        raise AdapterError(f"{folder} cannot be written for mlx-lm: {some(problems, 4)}. Use the format merged.")
    tensors: dict[str, Tensor] = {}
    for path, part in weights.factors.items():
        tensors |= {f"{path}.lora_a": part.A.T.contiguous(), f"{path}.lora_b": part.B.T.contiguous()}
    with published(folder) as temporary:
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "mlx"})
        for file, value in {CONFIG: mlx_settings(weights), **extra_files}.items():
            write_json(temporary / file, value)
        if fill is not None:
            fill(temporary)
        check_same(read_adapter(temporary), weights, folder)


def mlx_settings(weights: AdapterWeights) -> dict[str, Any]:
    blocks = [match for path in weights.factors if (match := IN_BLOCK.fullmatch(path))]
    keys = {match["key"] for match in blocks} | {path for path in weights.factors if path in OUTSIDE}
    return {
        "fine_tune_type": "lora",
        "lora_parameters": {"rank": weights.rank, "scale": 1.0, "dropout": 0.0, "keys": sorted(keys)},
        "model": weights.settings.get("base_model_name_or_path"),
        "num_layers": 1_000,  # the last so many blocks, and no model has more
    }


def filled_by_export(
    artifact: Artifact, adapter: AdapterWeights, change: str, callback: Callback
) -> Callable[[Path], None]:
    """From the adapter that is exported, since no base model is loaded for it. `change` says how this one differs."""

    def fill(folder: Path) -> None:
        if not copy_reader(artifact.result, folder):
            callback(
                WarningMessage(
                    f"{artifact.result} has no tokenizer, so {folder} has none either; use the base model's tokenizer"
                )
            )
        text = _card_of(artifact, adapter, change)
        if text is not None:
            write_atomic(folder / CARD, text.encode())

    return fill


def _card_of(artifact: Artifact, adapter: AdapterWeights, change: str) -> str | None:
    """Written anew for a run; an adapter's folder has its own, to which the change is added, or none."""
    if artifact.run is None:
        own = artifact.folder / CARD
        if not own.is_file() or own.stat().st_size > LARGEST_CARD:
            return None
        text = own.read_text(encoding="utf-8", errors="replace").rstrip("\n")
        return f"{text}\n\n{change}\n" if change else f"{text}\n"
    manifest, data_report = artifact.run.manifest, artifact.data_report
    if manifest.results is None or data_report is None:
        raise RunError(f"{artifact.folder} has no results, so the run is not finished.")
    ranks = [part.rank for part in adapter.factors.values()]
    base = recorded_base(artifact.result)
    return card(CardFacts(
        run=artifact.run.experiment.run, adapter=artifact.config, anchor=artifact.run.experiment.training.anchor,
        base=artifact.trained_on or manifest.base_model,
        base_licence=UNKNOWN if base is None else base.licence, data_report=data_report, results=manifest.results,
        learning_rate=manifest.learning_rate, ranks=ranks, export=change, lineage=artifact.lineage,
        forecast=manifest.forecast,
    ))  # fmt: skip
