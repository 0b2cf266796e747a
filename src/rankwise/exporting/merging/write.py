"""A merged model as a folder, whole or not at all, with the record of what it was made of.

The weights are written first, each file flushed to the disk, then what lies beside them: the tokenizer with the
template that was trained with, the preprocessing of images, generation settings, what rankwise records, and config.json
under another name. Then the folder takes its name, and last of all config.json: only this makes the folder one that
programs load. A merge that is killed at any moment leaves a folder without config.json.

merge.json has the SHA-256 of every file: of base, adapters and what was written. Hashes are those of whole files, of
the base's weights the same that the hub shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rankwise.adapters.formats.dialects import detect
from rankwise.base.beside import copy_reader
from rankwise.base.inspection import read_json
from rankwise.base.loading import load_tokenizer
from rankwise.base.preprocessing import save_processing
from rankwise.base.rotary_names import with_older_names
from rankwise.base.saving import save_end_tokens, save_tokenizer
from rankwise.base.tensor_files import INDEX, WrittenFile
from rankwise.errors import ModelError, RunError
from rankwise.exporting.merge import extra_files
from rankwise.exporting.merging.apply import Rounding, write_weights
from rankwise.exporting.merging.inputs import Inputs
from rankwise.exporting.merging.plan import MergePlan
from rankwise.inference.tuned_model import with_own_template
from rankwise.kernels.row_pieces import PIECE
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.manifest import peak_rss
from rankwise.runs.records import Callback, StatusMessage, WarningMessage, silent
from rankwise.system.extras import installed_version
from rankwise.system.files import need_space, published, sha256_of, write_json

CONFIG, RECORD = "config.json", "merge.json"
WAITING = f"{CONFIG}.unfinished"
LARGEST_LICENCE = 1_000_000
"""Bytes."""


@dataclass(frozen=True)
class MergedFolder:
    folder: str
    bytes: int
    dtype: str
    changed: int
    """Tensors that differ from the base's."""
    roundings: tuple[Rounding, ...]
    peak_bytes: int


def write_merged(plan: MergePlan, folder: Path, callback: Callback) -> MergedFolder:
    need_space(folder.absolute(), plan.nbytes)
    with published(folder) as temporary:
        files, roundings = write_weights(plan, temporary, callback)
        config = write_surroundings(plan, temporary, callback)
        callback(StatusMessage("Recording what was merged"))
        write_json(temporary / WAITING, config)
        _write_record(plan, files, temporary)
    (folder / WAITING).replace(folder / CONFIG)
    return MergedFolder(
        str(folder), sum(file.bytes for file in files), plan.formats, len(plan.changed), tuple(roundings),
        peak_rss(),
    )  # fmt: skip


def _write_record(plan: MergePlan, weights: Sequence[WrittenFile], folder: Path) -> None:
    files = {file.name: file.sha256 for file in weights} | {CONFIG: sha256_of(folder / WAITING)}
    if (folder / INDEX).is_file():
        files[INDEX] = sha256_of(folder / INDEX)
    write_json(folder / RECORD, record_of(plan, files))


def refuse_unfinished(folder: Path) -> None:
    """RunError where a merge into this folder was killed in its last moment."""
    if (folder / WAITING).is_file():
        raise RunError(f"{folder} was left by a merge that was killed before it was done. Remove it and merge again.")


def write_surroundings(plan: MergePlan, folder: Path, callback: Callback) -> dict[str, Any]:
    """Write all but config.json, which is returned."""
    inputs, base = plan.inputs, plan.inputs.source.folder
    tokenizer = None
    if inputs.objective.kind.processing is not None:
        save_processing(inputs.objective.kind.processing, base, folder)
    else:
        tokenizer = _write_text(inputs, folder, callback)
    if len(plan.shards) > 1 or (base / INDEX).is_file():
        write_json(folder / INDEX, index_of(plan))
    if len(inputs.parts) == 1:
        for name, value in extra_files(inputs.parts[0].artifact, inputs.strength).items():
            write_json(folder / name, value)
    for file in sorted(base.glob("LICENSE*")):  # the base's licence goes with its weights
        if file.is_file() and not file.is_symlink() and file.stat().st_size <= LARGEST_LICENCE:
            (folder / file.name).write_bytes(file.read_bytes())
    return config_of(plan, tokenizer)


def _write_text(inputs: Inputs, folder: Path, callback: Callback) -> HubTokenizer | None:
    """With the template of the first adapter that has one of its own."""
    base, spec = inputs.source.folder, inputs.parts[0].artifact.base
    try:
        tokenizer, _, _ = load_tokenizer(spec, silent)
    except ModelError as error:
        copy_reader(base, folder)
        callback(WarningMessage(f"{error} The files beside the weights were copied as they are"))
        return None
    template = ChatTemplate.of_model(tokenizer)
    for part in reversed(inputs.parts):
        report = part.artifact.data_report
        if report is not None and report.template is not None:
            template = ChatTemplate.of_data_report(tokenizer, report.template)
        elif part.artifact.run is None:
            template = with_own_template(part.artifact.folder, tokenizer, base, template, callback)
    save_tokenizer(tokenizer, template, base, folder)
    if inputs.objective.head is None:
        save_end_tokens(base, template, folder)
    return tokenizer


def config_of(plan: MergePlan, tokenizer: HubTokenizer | None) -> dict[str, Any]:
    """The base's settings; of a model with a new head those that it was built with."""
    inputs = plan.inputs
    base = read_json(inputs.source.folder / CONFIG)
    head = inputs.objective.head
    settings = base if head is None else head.merged_config(base, inputs.base.module, tokenizer)
    if plan.untied:
        settings["tie_word_embeddings"] = False
        for nested in ("text_config", "llm_config"):
            if isinstance(settings.get(nested), dict):
                settings[nested]["tie_word_embeddings"] = False
    if plan.dtype is not None:
        for key in ("dtype", "torch_dtype"):
            if key in settings or key == "dtype":
                settings[key] = plan.dtype.name
    return with_older_names(settings)


def index_of(plan: MergePlan) -> dict[str, Any]:
    places = {tensor.key: shard.name for shard in plan.shards for tensor in shard.tensors}
    return {"metadata": {"total_size": plan.nbytes}, "weight_map": dict(sorted(places.items()))}


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
