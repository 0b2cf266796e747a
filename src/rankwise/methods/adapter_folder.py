"""What lies in an adapter's folder beside its tensors and their settings, so that others can load and understand it:
tokenizer, chat template, model card, data report, and what is known of the base.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rankwise.adapters.set import AdapterSet
from rankwise.adapters.tuned import Tuned
from rankwise.adapters.weights import AdapterWeights
from rankwise.data.licences import find_licence
from rankwise.errors import RunError
from rankwise.methods.model_card import CARD, UNKNOWN, CardFacts, card
from rankwise.methods.opening import AdapterBase, Opened, recorded_base
from rankwise.models.beside import copy_tokenizer
from rankwise.models.loaded import LoadedModel
from rankwise.models.saving import save_tokenizer
from rankwise.models.sources import FROM_GGUF
from rankwise.models.starters import STARTERS
from rankwise.runs.records import Callback, StatusMessage, WarningMessage
from rankwise.system.files import write_atomic

LARGEST_CARD = 1_000_000
"""Bytes."""


def base_recorded(model: LoadedModel) -> AdapterBase:
    """The base's facts as they lie beside an adapter, with its licence where somebody says it."""
    starter = next((one.licence for one in STARTERS.values() if one.hub_id == model.source.name), None)
    licence = starter or find_licence(model.source.folder)
    return AdapterBase(**model.facts.model_dump(), licence=licence)


def filled_by_training(model: LoadedModel, facts: CardFacts) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        save_tokenizer(model, folder)
        write_atomic(folder / CARD, card(facts).encode())

    return fill


def filled_by_export(
    opened: Opened, adapter: AdapterWeights, change: str, callback: Callback
) -> Callable[[Path], None]:
    """From the adapter that is exported, since no base model is loaded for it. `change` says how this one differs."""

    def fill(folder: Path) -> None:
        if not copy_tokenizer(opened.result, folder):
            callback(WarningMessage(f"{opened.result} has no tokenizer, so {folder} has none; use the base model's"))
        text = _card_of(opened, adapter, change)
        if text is not None:
            write_atomic(folder / CARD, text.encode())

    return fill


def _card_of(opened: Opened, adapter: AdapterWeights, change: str) -> str | None:
    """Written anew for a run; an adapter's folder has its own, to which the change is added, or none."""
    if opened.run is None:
        own = opened.folder / CARD
        if not own.is_file() or own.stat().st_size > LARGEST_CARD:
            return None
        text = own.read_text(encoding="utf-8", errors="replace").rstrip("\n")
        return f"{text}\n\n{change}\n" if change else f"{text}\n"
    manifest, data_report = opened.run.manifest(), opened.data_report
    if manifest.results is None or data_report is None:
        raise RunError(f"{opened.folder} has no results, so the run is not finished.")
    ranks = [part.rank for part in adapter.factors.values()]
    base = recorded_base(opened.result)
    return card(
        CardFacts(
            opened.run.experiment(), opened.trained_on or manifest.base_model,
            UNKNOWN if base is None else base.licence, data_report,
            manifest.results, manifest.learning_rate, ranks, change,
        )
    )  # fmt: skip


def say_what_peft_reads(tuned: Tuned, model: LoadedModel, callback: Callback) -> None:
    if isinstance(tuned, AdapterSet) and model.source.where == FROM_GGUF:
        callback(StatusMessage(
            f"PEFT cannot read GGUF files: adapter_config.json names {model.source.folder}, which holds the base model "
            "converted to safetensors. For other machines, use rankwise export --format merged"
        ))  # fmt: skip
