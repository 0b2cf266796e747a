"""Everything of a merged model but its weights: config.json, the tokenizer with the template that was trained with, the
preprocessing of images, generation settings, and what rankwise records beside them.

config.json is written last, after the weights are on the disk: until then nothing takes the folder for a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rankwise.errors import ModelError
from rankwise.exporting.merge import beside
from rankwise.exporting.merging.inputs import Inputs
from rankwise.exporting.merging.plan import MergePlan
from rankwise.inference.tuned_model import with_own_template
from rankwise.models.beside import copy_reader
from rankwise.models.loading import load_tokenizer
from rankwise.models.preprocessing import save_processing
from rankwise.models.rotary_names import with_older_names
from rankwise.models.saving import save_end_tokens, save_tokenizer
from rankwise.models.tensor_files import INDEX
from rankwise.models.timm_models import is_timm, set_config
from rankwise.runs.records import Callback, WarningMessage, silent
from rankwise.system.files import write_json
from rankwise.system.foreign_json import read_json
from rankwise.text.chat_template import ChatTemplate
from rankwise.text.tokenizer import HubTokenizer

CONFIG = "config.json"
LARGEST_LICENCE = 1_000_000
"""Bytes."""


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
        for name, value in beside(inputs.parts[0].artifact, inputs.strength).items():
            write_json(folder / name, value)
    _copy_licences(base, folder)
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
    if inputs.objective.targets is None:
        save_end_tokens(base, template, folder)
    return tokenizer


def config_of(plan: MergePlan, tokenizer: HubTokenizer | None) -> dict[str, Any]:
    """The base's settings; of a model with a new head those that it was built with."""
    inputs = plan.inputs
    settings = read_json(inputs.source.folder / CONFIG)
    if inputs.objective.targets is not None:
        settings = _of_classifier(inputs, tokenizer)
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


def _of_classifier(inputs: Inputs, tokenizer: HubTokenizer | None) -> dict[str, Any]:
    module, targets, processing = inputs.base.module, inputs.objective.targets, inputs.objective.kind.processing
    config: Any = module.config
    if tokenizer is not None and config.get_text_config().pad_token_id is None:
        config.pad_token_id = config.get_text_config().pad_token_id = tokenizer.pad_id
    assert targets is not None, "asked by the caller"
    if is_timm(module) and processing is not None:
        set_config(module, targets.classes, processing)
    config.architectures = [type(module).__name__]
    own = read_json(inputs.source.folder / CONFIG)
    stored = config.to_dict()
    for key in ("dtype", "torch_dtype"):
        stored.pop(key, None)
        if key in own:
            stored[key] = own[key]
    return stored


def index_of(plan: MergePlan) -> dict[str, Any]:
    places = {tensor.key: shard.name for shard in plan.shards for tensor in shard.tensors}
    return {"metadata": {"total_size": plan.nbytes}, "weight_map": dict(sorted(places.items()))}


def _copy_licences(base: Path, folder: Path) -> None:
    """The base's licence goes with its weights."""
    for file in sorted(base.glob("LICENSE*")):
        if file.is_file() and not file.is_symlink() and file.stat().st_size <= LARGEST_LICENCE:
            (folder / file.name).write_bytes(file.read_bytes())
