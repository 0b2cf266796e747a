"""What a chat template adds to the texts of a conversation, in tokens, without transformers.

The template is rendered on short conversations, in the sandbox that transformers renders it in, and what is longer than
the texts is counted: around each message, and once for a conversation (a start token, a system message of its own).
Where that fails, a few tokens around each message are taken for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rankwise.config.data import DataConfig
from rankwise.config.recipe import recipe_named
from rankwise.planning.rows import AROUND_MESSAGE

Count = Callable[[Sequence[str]], list[int]]
"""The tokens of each text."""
LEARNED = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
"""Marks that jinja alone does not know."""
TEXT = "a"


@dataclass(frozen=True)
class Around:
    message: float = AROUND_MESSAGE
    conversation: float = 0.0
    with_system: float = 0.0
    """Instead of `conversation` where it brings a system message."""


class _Refused(Exception):
    """By the template itself."""


def around_of(spec: DataConfig, folder: Path | None, count: Count) -> Around:
    """Of the recipe's template, or of the model's in `folder`."""
    settings = _read(folder / "tokenizer_config.json") if folder is not None else {}
    template = recipe_named(spec.recipe).template if spec.recipe is not None else _template(folder, settings)
    return measured(template, settings, count) if template is not None else Around()


def measured(template: str, settings: Mapping[str, Any], count: Count) -> Around:
    asked, answered, told = ({"role": role, "content": TEXT} for role in ("user", "assistant", "system"))
    render = _renderer(template, settings)
    once = render([asked, answered])
    twice, system = render([asked, answered, asked, answered]), render([told, asked, answered])
    if once is None:
        return Around()
    text, one, two, three = count([TEXT, once, twice or "", system or ""])
    message = max(0.0, (two - one) / 2 - text) if twice is not None else 0.0
    conversation = max(0.0, one - 2 * (text + message))
    return Around(message, conversation, max(0.0, three - 3 * (text + message)) if system is not None else conversation)


def _renderer(template: str, settings: Mapping[str, Any]) -> Callable[[list[dict[str, str]]], str | None]:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    special = {name: _token(settings.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: form
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)

    def render(messages: list[dict[str, str]]) -> str | None:
        try:
            parsed = environment.from_string(LEARNED.sub("", template))
            return parsed.render(messages=messages, tools=None, add_generation_prompt=False, **special)
        except Exception:  # whatever a template can raise: it is counted without then
            return None

    return render


def _refuse(message: str) -> NoReturn:
    raise _Refused(message)


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


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _token(value: Any) -> str:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""
