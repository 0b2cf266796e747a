"""A model as a folder that other programs load: weights, tokenizer, the template it answers by, what ends an answer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from rankwise.models.chat_templates import ChatTemplate
from rankwise.models.inspection import read_json
from rankwise.models.loaded import LoadedModel
from rankwise.models.sources import find
from rankwise.run.records import Announce
from rankwise.spec.models import ModelSpec

_MARK = re.compile(r"\{%-?\+?\s*(?:end)?generation\s*-?\+?%\}")


def stored_dtype(spec: ModelSpec, announce: Announce) -> torch.dtype:
    """The number format that a model's files say they have."""
    config = read_json(find(spec, announce).folder / "config.json")
    inner = config.get("text_config")
    sections = [config, inner if isinstance(inner, dict) else {}]
    named = next((said for part in sections for key in ("dtype", "torch_dtype") if (said := part.get(key))), None)
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(str(named), torch.float32)


def save(model: LoadedModel, folder: Path, dtype: torch.dtype) -> None:
    """The model's weights are changed to `dtype` in place."""
    from transformers import GenerationConfig

    module: Any = model.module.to(dtype)
    settings = model.source.folder / "generation_config.json"
    if settings.is_file():
        module.generation_config = GenerationConfig.from_pretrained(model.source.folder, local_files_only=True)
    ends = list(model.template.end_ids)
    if ends:
        module.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    module.save_pretrained(folder)
    tokenizer = model.tokenizer.hub
    own, tokenizer.chat_template = tokenizer.chat_template, template_text(model.template)
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = own


def template_text(template: ChatTemplate) -> Any:
    """As engines read it: without the marks of what is learned, and with what every conversation begins with."""
    facts = template.facts
    start = f"{{{{ {json.dumps(facts.start)} }}}}" if facts.start else ""
    sources = {name: start + _MARK.sub(_same_trim, source) for name, source in facts.sources.items()}
    return sources["default"] if list(sources) == ["default"] else sources


def _same_trim(mark: re.Match[str]) -> str:
    """A mark may take white space away beside it, and a comment does the same."""
    text = mark[0]
    left, right = ("-" if text[at] == "-" else "" for at in (2, -3))
    return f"{{#{left} {right}#}}"
