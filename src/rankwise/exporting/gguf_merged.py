"""A run's whole model as one GGUF file, written tensor by tensor: never more than one of them is in memory.

base          tensors that the adapter changes         all others                      settings and tokenizer
a folder      in the type of --dtype                   in the type of --dtype          written from the folder's files
a GGUF file   in the type of --dtype, or in float16    as they are, byte for byte;     copied, but for the chat
                                                       with --dtype in its type        template

Vectors (norms, biases) are float32, as llama.cpp expects. Of a folder that was quantised for the training, the numbers
that it was trained over are written. The chat template and the end tokens are those of training. The file is read back
by the gguf package's own reader, and compared with each tensor computed a second time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rankwise.base.gguf.architectures import EMBEDDING, HEAD
from rankwise.base.gguf.files import TYPES, GgufTensor, check_written, type_for, write_gguf
from rankwise.base.gguf.folder import FileBase, FolderBase, GgufBase, is_tied
from rankwise.base.gguf.settings import computed_tensors, settings_of, window_note
from rankwise.base.gguf.vocabulary import PREFIX, end_fields, split_name, vocabulary_fields
from rankwise.base.kind import CAUSAL_LM
from rankwise.base.loading import load_tokenizer
from rankwise.base.saving import stored_as
from rankwise.errors import AdapterError, ConfigError, TemplateError
from rankwise.exporting.gguf_target import GgufChange, GgufModel, gguf_file, gguf_model
from rankwise.exporting.merge import Order
from rankwise.exporting.served_jinja import served_jinja, template_of
from rankwise.exporting.trained_base import quantized_weights
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import Message
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.records import Callback, StatusMessage, WarningMessage
from rankwise.system.files import need_space

FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class GgufMerged:
    dtype: str
    """Number format of the matrices that were not copied from the base's file."""
    rounding: float
    """The largest error that this type makes, as a share of the largest number of its tensor."""
    changed: int
    """The number of tensors that the adapter changes."""
    copied: int
    """The number of tensors that are the base file's, byte for byte."""


def export_gguf(order: Order) -> GgufMerged:
    """Write the merged model as a file."""
    model, callback, strength = gguf_model(order), order.callback, order.strength
    if model.adapter is None and strength != 1:
        raise ConfigError([
            f"--strength {strength:g}: {model.artifact.described} trained the whole model, and a GGUF export scales "
            "the change of adapters alone. Use --format merged, or leave out --strength."
        ])  # fmt: skip
    change = GgufChange({}, {})
    if model.adapter is not None:
        change = GgufChange.of(model.adapter, model.names, model.artifact.described, strength)
    if model.file is None:
        name = order.dtype or str(stored_as(model.model_config, callback)[0]).removeprefix("torch.")
        base, fields, tensors = _from_folder(model, change, name, callback)
    else:
        name = order.dtype or "float16"
        base, fields, tensors = _from_file(model, model.file, change, order.dtype, callback)
    missing = change.names - {tensor.name for tensor in tensors}
    if missing or (HEAD in {tensor.name for tensor in tensors} and not model.architecture.own_head):
        raise AdapterError(
            f"{model.artifact.described} adapts the embedding or the output head of a {model.architecture.name} model, "
            "which llama.cpp reads as one. Use --format merged."
        )
    need_space(order.folder.absolute(), sum(tensor.bytes for tensor in tensors))
    # Some rows do not fill whole blocks of a quantised type
    matrices = TYPES[name][0]
    other = [one.name for one in tensors if not one.copied and len(one.shape) > 1 and one.type not in (matrices, "F32")]
    if other and matrices not in FLOATS:
        callback(WarningMessage(
            f"{len(other)} matrices, such as {other[0]}, are stored as F16, because their rows do not fill whole "
            f"blocks of {matrices}"
        ))  # fmt: skip
    with gguf_file(order) as file:
        write_gguf(file, model.architecture.name, fields, tensors, callback)
        rounding = check_written(file, tensors, order.folder, callback)
    copied = sum(tensor.copied for tensor in tensors)
    if isinstance(base, FileBase) and copied:
        callback(StatusMessage(_copied(base, change, name, copied)))
    return GgufMerged(name, rounding, len(change.names), copied)


def _from_folder(
    model: GgufModel, change: GgufChange, dtype: str, callback: Callback
) -> tuple[GgufBase, dict[str, Any], list[GgufTensor]]:
    tied = bool(model.config.get("tie_word_embeddings"))
    packed = quantized_weights(model.source.folder, CAUSAL_LM, model.model_config.packed_format, callback)
    base = FolderBase(model.source.folder, model.names, tied=tied, quantized=packed)
    shapes = dict(base.shapes)
    settings = settings_of(model.config, model.architecture, model.artifact.described)
    if note := window_note(model.config, model.architecture):
        callback(WarningMessage(note))
    fields: dict[str, Any] = {"general.type": "model", "general.name": model.artifact.name}
    fields |= {f"{model.architecture.name}.{key}": value for key, value in settings.items()}
    fields |= reader_fields(model, shapes[EMBEDDING][0], callback)
    fields |= {"general.file_type": TYPES[dtype][1], "general.quantization_version": 2}
    tensors = _all_tensors(base, shapes, change, dict.fromkeys(shapes, TYPES[dtype][0]))
    computed = computed_tensors(model.config)
    tensors += [GgufTensor(name, tuple(value.shape), "F32", lambda value=value: value)
                for name, value in computed.items()]  # fmt: skip
    return base, fields, tensors


def _from_file(
    model: GgufModel, file: Path, change: GgufChange, dtype: str | None, callback: Callback
) -> tuple[GgufBase, dict[str, Any], list[GgufTensor]]:
    base = FileBase(file)
    shapes, types = dict(base.shapes), dict[str, str]()
    for name in shapes:
        own = base.type(name)
        if dtype is not None:
            types[name] = TYPES[dtype][0]
        elif name in change.names:
            types[name] = own if own in FLOATS else TYPES["float16"][0]
    fields: dict[str, Any] = dict(base.fields())
    fields |= reader_fields(model, shapes[EMBEDDING][0], callback, base)
    if dtype is not None:
        fields["general.file_type"] = TYPES[dtype][1]
    return base, fields, _all_tensors(base, shapes, change, types)


def _all_tensors(
    base: GgufBase, shapes: Mapping[str, tuple[int, ...]], change: GgufChange, types: Mapping[str, str]
) -> list[GgufTensor]:
    """All tensors of the file; those without a type are copied. A head that was the embedding is parted from it where
    only one of the two was trained."""
    parted = is_tied(base) and bool(change.names & {EMBEDDING, HEAD})
    sources = {name: name for name in shapes} | ({HEAD: EMBEDDING} if parted else {})
    tensors: list[GgufTensor] = []
    for name, source in sources.items():
        shape, wanted = shapes[source], types.get(name, types.get(source))
        if wanted is None or (isinstance(base, FileBase) and name not in change.names and base.type(source) == wanted):
            assert isinstance(base, FileBase), "tensors of a folder have a type each"
            copy, own = base.raw, base.type(source)
            tensors.append(GgufTensor(name, shape, own, lambda copy=copy, source=source: copy(source), copied=True))
            continue

        def value(name: str = name, source: str = source) -> Tensor:
            return change.changed(name, base.value(source))

        tensors.append(GgufTensor(name, shape, type_for(name, shape, wanted), value))
    return tensors


def _copied(base: FileBase, change: GgufChange, dtype: str, copied: int) -> str:
    own = sorted({base.type(name) for name in change.names if name in base.shapes} - set(FLOATS))
    decoded = f"; they were {', '.join(own)} and are decoded, changed and written as {dtype}" if own else ""
    return (
        f"{copied} tensors are the base file's as they are, and {len(change.names)} are changed by the adapter{decoded}"
    )


TEMPLATE = "tokenizer.chat_template"


def reader_fields(model: GgufModel, rows: int, callback: Callback, file: FileBase | None = None) -> dict[str, Any]:
    """GGUF fields of the tokenizer and the chat template, for a model with `rows` rows in its embedding. With a base
    `file`, whose tokenizer is copied already, only the fields that training may have changed."""
    tokenizer, _, _ = load_tokenizer(model.model_config, callback)
    template = template_of(model.artifact, tokenizer)
    ends = tuple(dict.fromkeys((*tokenizer.end_ids, *template.end_ids)))
    if template.end_texts:
        callback(WarningMessage(
            f"answers end with the text {template.end_texts[0]!r}, for which GGUF has no field: give it to the engine "
            "as a stop text"
        ))  # fmt: skip
    begins: dict[str, Any] = {f"{PREFIX}add_bos_token": _begins(tokenizer, template)}
    if file is not None:
        own, trained = file.text(f"{PREFIX}pre"), split_name(tokenizer)
        if own is not None and trained is not None and own != trained:
            callback(WarningMessage(
                f"the file {model.model_config.name} splits texts into words by the rule {own!r}, and training "
                f"did by {trained!r}, which transformers makes of such files. Most texts have the same tokens by both; "
                "some, for example with several line breaks before a digit, do not"
            ))  # fmt: skip
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
