"""The Jinja template that an export carries, in a GGUF file or in a folder, compared with training's.

llama.cpp, llama-cpp-python and Ollama from 0.30 on render a GGUF file's own Jinja template (tokenizer.chat_template).
They know less than transformers does. base/saving.py removes `{% generation %}` marks and writes out the start token
that the tokenizer puts before every text; llama.cpp does not add it twice. Here three more changes are made:

- a template for tools and one without become one template;
- `enable_thinking` is set as in training;
- special tokens are set that engines do not pass, or pass as another token.

Programs that read adapters and models as folders take the template from chat_template.jinja, or from the field of
tokenizer_config.json. Where neither was written, a reader uses the base model's own, which is said and is no parity.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwise.base.beside import TEMPLATE, TOKENIZER_CONFIG, templates_in, tokenizer_in
from rankwise.base.saving import template_text
from rankwise.errors import TemplateError
from rankwise.exporting.template_parity import Parity, template_parity
from rankwise.methods.artifact import Artifact
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import Message
from rankwise.rows.text.template_process import Conversation, Rules, names, render_conversations
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.records import Callback

PASSED = ("bos_token", "eos_token")
"""The special tokens that every engine passes to a template."""
UNSET = ("functions", "function_call", "tool_choice")
"""What llama-cpp-python passes besides, without a value."""


def served_jinja(template: ChatTemplate) -> str:
    """The text for tokenizer.chat_template."""
    texts = template_text(template)
    sources = {"default": texts} if isinstance(texts, str) else dict(texts)
    source, with_tools = sources["default"], sources.get("tool_use")
    if with_tools is not None and with_tools != source:
        source = f"{{% if tools %}}{with_tools}{{% else %}}{source}{{% endif %}}"
    return _settings(template, source) + source


def template_of(artifact: Artifact, tokenizer: HubTokenizer) -> ChatTemplate:
    """The template of training: the recorded one, that in somebody else's folder, or the base model's own."""
    report = artifact.data_report
    if report is not None and report.template is not None:
        return ChatTemplate.of_data_report(tokenizer, report.template)
    sources = templates_in(artifact.folder) if artifact.run is None else {}
    return ChatTemplate(tokenizer, sources, "model") if sources else ChatTemplate.of_model(tokenizer)


def _settings(template: ChatTemplate, source: str) -> str:
    """What training passes to the template and an engine does not."""
    used, hub = names(source), template.tokenizer.hub
    values: dict[str, Any] = {"enable_thinking": template.thinks} if "enable_thinking" in used else {}
    for name, token in template.special_tokens.items():
        if name in used and (name not in PASSED or getattr(hub, name) != token):
            values[name] = token
    return "".join(f"{{% set {name} = {json.dumps(value, ensure_ascii=False)} %}}" for name, value in values.items())


def gguf_parity(template: ChatTemplate, source: str | None = None) -> Parity:
    """Compare a GGUF file's Jinja template, by default `served_jinja`, with training's, by llama-cpp-python's rules.

    Versions before 0.3.36 may write the JSON of tools with sorted keys; a template without tools is not concerned.
    """
    written = served_jinja(template) if source is None else source
    hub = template.tokenizer.hub

    values = {"bos_token": hub.bos_token or "", "eos_token": hub.eos_token or ""} | dict.fromkeys(UNSET)

    def render(messages: Sequence[Message], tools: Sequence[Any]) -> str:
        return rendered_prompt(written, values, messages, tools, "llama.cpp")

    return template_parity(template, render, adds_start=False, carrier="tokenizer.chat_template")


def rendered_prompt(
    source: str, values: Mapping[str, Any], messages: Sequence[Message], tools: Sequence[Any],
    rules: Rules = "transformers",
) -> str:  # fmt: skip
    """A conversation as an engine writes it, up to where the model begins to write."""
    turns = [as_openai(message) for message in messages]
    asked = Conversation(turns, list(tools) or None, [(len(turns), True)])
    ((result,),) = render_conversations(source, values, [asked], rules)
    if isinstance(result, TemplateError):
        raise result
    return result[0]


def as_openai(message: Message) -> dict[str, Any]:
    """A message as a request to an engine has it."""
    calls = [
        {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in message.tool_calls
    ]
    named = {"name": message.name} if message.name is not None else {}
    return {"role": message.role, "content": message.content} | ({"tool_calls": calls} if calls else {}) | named


ABSENT = Parity(0, 0, ("no chat template was written, so a reader uses the base model's own",), ())


def folder_parity(artifact: Artifact, folder: Path, callback: Callback) -> Parity | None:
    """None for what holds no conversations, and so is not served."""
    if artifact.why_not("served") is not None:
        return None
    tokenizer = tokenizer_in(folder) if templates_in(folder) else None
    if tokenizer is None:
        return ABSENT

    own, hub = template_of(artifact, tokenizer), tokenizer.hub

    def render(messages: Sequence[Message], tools: Sequence[Any]) -> str:
        try:
            source = hub.get_chat_template(tools=list(tools) or None)
        except ValueError as error:  # several templates, and no default
            raise TemplateError(str(error)) from None
        return rendered_prompt(source, {**hub.special_tokens_map, "enable_thinking": own.thinks}, messages, tools)

    carrier = TEMPLATE if (folder / TEMPLATE).is_file() else TOKENIZER_CONFIG
    parity = template_parity(own, render, adds_start=False, carrier=carrier)
    parity.warn(str(folder / carrier), callback)
    return parity
