"""`--format gguf-lora` and `--format gguf`: one call for the command."""

from __future__ import annotations

from pathlib import Path

from rankwise.exporting.gguf_adapter import NAME as ADAPTER
from rankwise.exporting.gguf_adapter import export_gguf_adapter
from rankwise.exporting.gguf_merged import NAME as MODEL
from rankwise.exporting.gguf_merged import GgufMerged, export_gguf
from rankwise.exporting.gguf_target import gguf_model, is_gguf_file
from rankwise.exporting.merge import beside
from rankwise.exporting.served_jinja import gguf_parity, template_of
from rankwise.exporting.template_parity import Parity
from rankwise.methods.artifact import Artifact
from rankwise.methods.registry import method_of
from rankwise.models.gguf_files import TYPES
from rankwise.models.loading import load_tokenizer
from rankwise.runs.records import Callback, WarningMessage

FORMATS = ("gguf-lora", "gguf")
DTYPES = tuple(TYPES)


def template_parity_of(artifact: Artifact, callback: Callback) -> Parity:
    """Compare the Jinja template that a GGUF file of this run has with training's, as llama.cpp renders it."""
    tokenizer, _, _ = load_tokenizer(method_of(artifact.config).model_of(artifact), callback)
    parity = gguf_parity(template_of(artifact, tokenizer))
    if parity.different:
        callback(WarningMessage(
            f"llama.cpp writes {len(parity.different)} of {parity.conversations} conversations otherwise than training "
            f"did, first {parity.different[0]}"
        ))  # fmt: skip
    return parity


def export_as_gguf(
    artifact: Artifact, format: str, to: Path, callback: Callback, dtype: str | None, strength: float, *,
    force_base: bool,
) -> tuple[Path, GgufMerged | int]:  # fmt: skip
    """Write an adapter or a merged model; returns the written file, and what was written: the facts of a merged model,
    or the largest rank of an adapter."""
    method_of(artifact.config).check_export(format, artifact.folder)
    model = gguf_model(artifact, callback, force_base=force_base)
    files = beside(artifact, strength)
    if format == "gguf":
        written: GgufMerged | int = export_gguf(model, to, callback, dtype, strength, files)
    else:
        written = export_gguf_adapter(model, to, callback, strength, files)
    return (to if is_gguf_file(to) else to / (MODEL if format == "gguf" else ADAPTER)), written
