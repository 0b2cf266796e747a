"""What an export writes into an adapter's folder beside tensors and settings: tokenizer, template and model card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rankwise.adapters.weights import AdapterWeights
from rankwise.errors import RunError
from rankwise.methods.artifact import Artifact, recorded_base
from rankwise.methods.model_card import UNKNOWN, CardFacts, card
from rankwise.models.beside import copy_reader
from rankwise.runs.directory import CARD
from rankwise.runs.records import Callback, WarningMessage
from rankwise.system.files import write_atomic

LARGEST_CARD = 1_000_000
"""Bytes."""


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
    return card(
        CardFacts(
            artifact.run.experiment, artifact.trained_on or manifest.base_model,
            UNKNOWN if base is None else base.licence, data_report,
            manifest.results, manifest.learning_rate, ranks, change, artifact.lineage,
        )
    )  # fmt: skip
