"""Saving a model as a folder for other programs: weights, tokenizer, chat template and end tokens."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from rankwise.base.gguf.header import read_gguf_header
from rankwise.base.inspection import is_encoder
from rankwise.base.loaded import LoadedModel
from rankwise.base.preprocessing import save_processing
from rankwise.base.rotary_names import write_older_names
from rankwise.base.sharding import save_whole
from rankwise.base.sources import find
from rankwise.base.split import is_sharded
from rankwise.base.tensor_files import read_header
from rankwise.config.models import ModelConfig
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.records import Callback
from rankwise.system.files import write_json
from rankwise.system.foreign_json import read_json

_MARK = re.compile(r"\{%-?\+?\s*(?:end)?generation\s*-?\+?%\}")


def numbers_in(folder: Path) -> Counter[str]:
    """Count the numbers in a model's files by dtype."""
    counts: Counter[str] = Counter()
    for file in sorted(folder.glob("*.safetensors")):
        for tensor in read_header(file)[0].values():
            counts[tensor.dtype] += math.prod(tensor.shape)
    return counts


def stored_as(config: ModelConfig, callback: Callback) -> tuple[torch.dtype, int]:
    """Return the dtype of most weights in a model's files, and the number of weights. Those of a GGUF file are unpacked
    to float32."""
    source = find(config, callback)
    if source.mapped_file is not None:
        return torch.float32, sum(map(math.prod, read_gguf_header(source.mapped_file).tensors.values()))
    counts = numbers_in(source.folder)
    dtype = {"BF16": torch.bfloat16, "F16": torch.float16}.get(counts.most_common(1)[0][0], torch.float32)
    return dtype, counts.total()


def save(model: LoadedModel, folder: Path, dtype: torch.dtype) -> None:
    """Save the model; its weights are converted to `dtype` in place."""
    module: Any = model.module
    if is_sharded(module):
        save_whole(module, folder)
    else:
        module.to(dtype).save_pretrained(folder)
    write_older_names(folder)
    if model.text is not None:
        save_end_tokens(model.source.folder, model.template, folder)
    save_reader(model, folder)


def save_reader(model: LoadedModel, folder: Path) -> None:
    """Save what turns rows into inputs: the tokenizer with its chat template, or the preprocessing of images."""
    if model.processing is not None:
        save_processing(model.processing, model.source.folder, folder)
    if model.text is not None:
        save_tokenizer(model.tokenizer, model.template, model.source.folder, folder)


def save_tokenizer(tokenizer: HubTokenizer, template: ChatTemplate, base: Path, folder: Path) -> None:
    """Save the tokenizer with the template used for generation, which encoders do without, and the list of special
    tokens of the folder `base` if it has one."""
    hub = tokenizer.hub
    config = base / "config.json"
    writes = not (config.is_file() and is_encoder(read_json(config)))
    own, hub.chat_template = hub.chat_template, template_text(template) if writes else hub.chat_template
    try:
        hub.save_pretrained(folder)
    finally:
        hub.chat_template = own
    special = base / "special_tokens_map.json"
    if special.is_file():
        write_json(folder / special.name, read_json(special))


def save_end_tokens(base: Path, template: ChatTemplate, folder: Path) -> None:
    """Save the generation settings of the folder `base` with the end tokens that the run was trained on."""
    name = "generation_config.json"
    own = read_json(base / name) if (base / name).is_file() else {}
    ends = list(template.end_ids)
    settings = own | ({"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {})
    (folder / name).unlink(missing_ok=True)
    if settings:
        write_json(folder / name, settings)


def template_text(template: ChatTemplate) -> Any:
    """Return the template for inference engines: without generation marks, and with the text that begins every
    conversation."""
    facts = template.facts
    start = f"{{{{ {json.dumps(facts.start)} }}}}" if facts.start else ""
    sources = {name: start + _MARK.sub(_same_trim, source) for name, source in facts.sources.items()}
    return sources["default"] if list(sources) == ["default"] else sources


def _same_trim(mark: re.Match[str]) -> str:
    """Replace a mark by a comment that trims the white space around it in the same way."""
    left, right = (sign if (sign := mark[0][at]) in "-+" else "" for at in (2, -3))
    return f"{{#{left} {right}#}}"
