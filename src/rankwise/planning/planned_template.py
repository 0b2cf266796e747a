"""What a chat template adds to the texts of a conversation, in tokens, without transformers.

The template is rendered on short conversations, as training renders it, and what is longer than the texts is counted:
around each message, and once for a conversation (a start token, a system message of its own). Where that fails, a few
tokens around each message are taken for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.config.data import DataConfig
from rankwise.config.recipe import recipe_named
from rankwise.errors import TemplateError
from rankwise.planning.gguf_tokenizer import holds_tokenizer, template_settings
from rankwise.planning.rows import AROUND_MESSAGE
from rankwise.text.template_process import Conversation, render_conversations

Count = Callable[[Sequence[str]], list[int]]
"""The tokens of each text."""
TEXT = "a"


@dataclass(frozen=True)
class Around:
    message: float = AROUND_MESSAGE
    conversation: float = 0.0
    with_system: float = 0.0
    """Instead of `conversation` where it brings a system message."""


def around_of(spec: DataConfig, model: Path | None, count: Count) -> Around:
    """Of the recipe's template, or of that in the model's folder or GGUF file."""
    settings = settings_in(model)
    template = recipe_named(spec.recipe).template if spec.recipe is not None else _template(model, settings)
    return measured(template, settings, count) if template is not None else Around()


def measured(template: str, settings: Mapping[str, Any], count: Count) -> Around:
    asked, answered, told = ({"role": role, "content": TEXT} for role in ("user", "assistant", "system"))
    special = {name: _token(settings.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    turns = ([asked, answered], [asked, answered, asked, answered], [told, asked, answered])
    conversations = [Conversation(messages, None, [(len(messages), False)]) for messages in turns]
    results = [result for (result,) in render_conversations(template, special, conversations)]
    once, twice, system = (None if isinstance(result, TemplateError) else result[0] for result in results)
    if once is None:
        return Around()
    text, one, two, three = count([TEXT, once, twice or "", system or ""])
    message = max(0.0, (two - one) / 2 - text) if twice is not None else 0.0
    conversation = max(0.0, one - 2 * (text + message))
    return Around(message, conversation, max(0.0, three - 3 * (text + message)) if system is not None else conversation)


def _template(folder: Path | None, settings: Mapping[str, Any]) -> str | None:
    if folder is None:
        return None
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    said = settings.get("chat_template")
    if isinstance(said, list):  # several, by name
        said = next(
            (one.get("template") for one in said if isinstance(one, dict) and one.get("name") == "default"), None
        )
    return said if isinstance(said, str) else None


def settings_in(model: Path | None) -> dict[str, Any]:
    """Those of the tokenizer in the model's folder or GGUF file."""
    if model is None or holds_tokenizer(model):
        return {} if model is None else template_settings(model)
    try:
        settings = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _token(value: Any) -> str:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""
