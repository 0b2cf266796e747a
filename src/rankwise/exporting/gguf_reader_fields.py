"""What turns a conversation into token ids in a GGUF file: the tokenizer, the end tokens and the chat template."""

from __future__ import annotations

from typing import Any

from rankwise.errors import TemplateError
from rankwise.exporting.gguf_target import GgufModel
from rankwise.exporting.served_jinja import served_jinja, template_of
from rankwise.models.gguf_base import FileBase
from rankwise.models.gguf_vocabulary import PREFIX, end_fields, split_name, vocabulary_fields
from rankwise.models.loading import load_tokenizer
from rankwise.runs.records import Callback, WarningMessage
from rankwise.text.chat_template import ChatTemplate
from rankwise.text.example import Message
from rankwise.text.tokenizer import HubTokenizer

TEMPLATE = "tokenizer.chat_template"


def reader_fields(model: GgufModel, rows: int, callback: Callback, file: FileBase | None = None) -> dict[str, Any]:
    """Of a model with `rows` in its embedding. With a base `file` its tokenizer is copied already, and these fields are
    what training made different."""
    tokenizer, _, _ = load_tokenizer(model.spec, callback)
    template = template_of(model.artifact, tokenizer)
    ends = tuple(dict.fromkeys((*tokenizer.end_ids, *template.end_ids)))
    if template.end_texts:
        callback(WarningMessage(
            f"answers end with the text {template.end_texts[0]!r}, for which GGUF has no field: give it to the engine "
            "as a stop text"
        ))  # fmt: skip
    begins: dict[str, Any] = {f"{PREFIX}add_bos_token": _begins(tokenizer, template)}
    if file is not None:
        _compare_splits(model, tokenizer, file, callback)
        return begins | {TEMPLATE: served_jinja(template)} | _new_ends(file, ends)
    described = model.source.name
    fields, notes = vocabulary_fields(tokenizer, rows, described)
    for note in notes:
        callback(WarningMessage(note))
    return fields | begins | end_fields(ends) | {TEMPLATE: served_jinja(template)}


def _begins(tokenizer: HubTokenizer, template: ChatTemplate) -> bool:
    """Whether a conversation began with the tokenizer's begin token in training. llama.cpp puts it before every text
    where the file says so, and not twice where the template writes it."""
    try:
        text = template.text([Message("user", "?")], answer_next=True)
    except TemplateError:  # it may demand other roles
        text = tokenizer.start
    return bool(tokenizer.start) and text.startswith(tokenizer.start)


def _new_ends(file: FileBase, ends: tuple[int, ...]) -> dict[str, Any]:
    """The file's own end of a text stays; an end of training that it does not name is added as the end of a turn."""
    own = file.text(f"{PREFIX}eos_token_id")
    new = [end for end in ends if str(end) != own]
    return {f"{PREFIX}eot_token_id": new[0]} if new else {}


def _compare_splits(model: GgufModel, tokenizer: HubTokenizer, file: FileBase, callback: Callback) -> None:
    own, trained = file.text(f"{PREFIX}pre"), split_name(tokenizer)
    if own is not None and trained is not None and own != trained:
        callback(WarningMessage(
            f"the file {model.spec.name} splits texts into words by the rule {own!r}, and training did by {trained!r}, "
            "which transformers makes of such files. Most texts have the same tokens by both; some, for example with "
            "several line breaks before a digit, do not"
        ))  # fmt: skip
