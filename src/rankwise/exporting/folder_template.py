"""The chat template that an exported folder carries, rendered as transformers renders it, compared with training's.

Programs that read adapters and models as folders take the template from there: chat_template.jinja, or the field of
tokenizer_config.json. Where neither was written, a reader uses the base model's own, which is said and is no parity.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankwise.errors import TemplateError
from rankwise.exporting.served_jinja import rendered_prompt, template_of
from rankwise.exporting.template_parity import Parity, template_parity
from rankwise.methods.artifact import Artifact
from rankwise.models.beside import TEMPLATE, TOKENIZER_CONFIG, templates_in, tokenizer_in
from rankwise.runs.records import Callback, WarningMessage
from rankwise.text.example import Message

ABSENT = Parity(0, 0, ("no chat template was written, so a reader uses the base model's own",), ())


def folder_parity(artifact: Artifact, folder: Path, callback: Callback) -> Parity | None:
    """None for a classifier and for an encoder with a decoder, which hold no conversations."""
    if artifact.targets is not None or artifact.encoder_decoder:
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
    if parity.different:
        callback(WarningMessage(
            f"{folder / carrier} writes {len(parity.different)} of {parity.conversations} conversations otherwise than "
            f"training did, first {parity.different[0]}"
        ))  # fmt: skip
    return parity
