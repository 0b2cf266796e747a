"""A run as a folder that `ollama create` reads: the merged model, and the Modelfile with the template of training.

The template is written and compared before any weight is, so that a chat template which Ollama cannot render is refused
in the first second.
"""

from __future__ import annotations

from pathlib import Path

from rankwise.errors import RunError
from rankwise.exporting.merge import Merged, export_merged
from rankwise.exporting.ollama import OllamaTemplate, modelfile, ollama_template
from rankwise.exporting.served_jinja import template_of
from rankwise.methods.artifact import Artifact
from rankwise.methods.registry import method_of
from rankwise.models.loading import load_tokenizer
from rankwise.runs.records import Callback

MODELFILE = "Modelfile"


def export_ollama(
    artifact: Artifact, folder: Path, callback: Callback, dtype: str | None, strength: float = 1.0, *, force_base: bool
) -> tuple[Merged, OllamaTemplate]:
    """Write the merged model with a Modelfile beside it; the Modelfile names the folder as its base."""
    if artifact.targets is not None:
        raise RunError(f"{artifact.described} is a classifier, and Ollama serves models that write text. Use merged.")
    tokenizer, _, positions = load_tokenizer(method_of(artifact.config).model_of(artifact), callback)
    served = ollama_template(template_of(artifact, tokenizer))
    report, run = artifact.data_report, artifact.run
    text = modelfile(
        served, base=".", system=None if report is None else report.system,
        max_length=None if run is None else run.experiment.data.max_length, positions=positions,
    )  # fmt: skip
    merged = export_merged(
        artifact, folder, callback, dtype, strength, force_base=force_base, texts={MODELFILE: text}
    )  # fmt: skip
    return merged, served
