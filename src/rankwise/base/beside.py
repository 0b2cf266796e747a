"""Tokenizer and chat template stored in an adapter's folder, as PEFT and TRL save them.

The folder is not trusted: files are read as text and JSON up to a size limit, and a template runs in the same sandbox
as every chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankwise.base.preprocessing import PREPROCESSOR
from rankwise.errors import AdapterError, first_line, some
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.system.files import sha256_of, write_atomic
from rankwise.system.foreign_json import read_json

LARGEST_TEMPLATE, LARGEST_TOKENIZER = 1_000_000, 100_000_000
"""Size limits in bytes."""
COPIED = ("added_tokens.json", "merges.txt", "special_tokens_map.json", "tokenizer.model", "vocab.json")
"""Further files of a tokenizer, beside those named below."""
TEMPLATE, MORE_TEMPLATES, TOKENIZER, TOKENIZER_CONFIG = (
    "chat_template.jinja", "additional_chat_templates", "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip


def templates_in(folder: Path) -> dict[str, str]:
    """Return Jinja texts by name, one of them "default"; empty if there is none. Files take precedence over
    settings."""
    config = read_json(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    found = _named(config.get("chat_template"))
    if (folder / TEMPLATE).is_file():
        found = {"default": _text(folder / TEMPLATE)}
        found |= {file.stem: _text(file) for file in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))}
    return found if "default" in found else {}


def _named(value: Any) -> dict[str, str]:
    """Read templates from a tokenizer's settings: one text, or a list of {name, template}."""
    if isinstance(value, str):
        return {"default": value}
    entries = [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
    pairs = [(one.get("name"), one.get("template")) for one in entries]
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}


def _text(file: Path) -> str:
    if not file.is_file() or file.stat().st_size > LARGEST_TEMPLATE:
        raise AdapterError(f"{file} is not a chat template: it must be a file of at most {LARGEST_TEMPLATE:,} bytes.")
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise AdapterError(f"{file} cannot be read as UTF-8 text ({type(error).__name__}).") from None


def tokenizer_in(folder: Path) -> HubTokenizer | None:
    """The folder's tokenizer as transformers loads it; None where it has none."""
    if not (folder / TOKENIZER).is_file():
        return None
    from transformers import AutoTokenizer

    try:
        hub: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as many kinds as there are tokenizers
        raise AdapterError(f"{folder} has a tokenizer that cannot be loaded: {first_line(error)}") from None
    return HubTokenizer(hub, [] if hub.eos_token_id is None else [hub.eos_token_id])


def copy_reader(source: Path, target: Path) -> bool:
    """Copy what turns rows into inputs to another folder: tokenizer and templates, or the preprocessing of images.
    Return whether there is one. Links out of the folder are only followed into the hub client's cache, so that no
    private file is copied."""
    whole = source.resolve()
    allowed = [whole, *(parent / "blobs" for parent in whole.parents[1:2])]
    names = [TEMPLATE, TOKENIZER, TOKENIZER_CONFIG, PREPROCESSOR, *COPIED]
    names += [f"{MORE_TEMPLATES}/{file.name}" for file in sorted((source / MORE_TEMPLATES).glob("*.jinja"))]
    for name in names:
        found = (source / name).resolve()
        own = any(found.is_relative_to(folder) for folder in allowed)
        if own and found.is_file() and found.stat().st_size <= LARGEST_TOKENIZER:
            (target / name).parent.mkdir(exist_ok=True)
            write_atomic(target / name, found.read_bytes())
    has_tokenizer = (target / TOKENIZER).is_file() and (target / TOKENIZER_CONFIG).is_file()
    return has_tokenizer or (target / PREPROCESSOR).is_file()


def other_tokens(folder: Path, base: HubTokenizer, base_folder: Path) -> str | None:
    """Describe how token ids of the folder's tokenizer differ from the base model's; None if they do not."""
    file, own = folder / TOKENIZER, base_folder / TOKENIZER
    if not file.is_file() or (own.is_file() and sha256_of(file) == sha256_of(own)):
        return None
    theirs, ours = _vocabulary(file), base.hub.get_vocab()
    other = [token for token, number in theirs.items() if ours.get(token, number) != number]
    added = [token for token in theirs if token not in ours]
    if other:
        return f"{len(other):,} tokens have different ids, such as {other[0]!r}"
    return f"it has {len(added):,} additional tokens, such as {some(map(repr, added), 3)}" if added else None


def added_texts(folder: Path, ids: Sequence[int]) -> tuple[str, ...]:
    """The texts of those tokens `ids` that the folder's tokenizer has beside its vocabulary, in the order of their ids:
    the base model's tokenizer may lack them."""
    if not ids or not (folder / TOKENIZER).is_file():
        return ()
    texts = _tokenizer_at(folder / TOKENIZER).get_added_tokens_decoder()
    return tuple(texts[number].content for number in sorted(ids) if number in texts)


def _vocabulary(file: Path) -> dict[str, int]:
    return _tokenizer_at(file).get_vocab(with_added_tokens=True)


def _tokenizer_at(file: Path) -> Any:
    from tokenizers import Tokenizer

    if file.stat().st_size > LARGEST_TOKENIZER:
        raise AdapterError(f"{file} has {file.stat().st_size:,} bytes, which is too large for a tokenizer.")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no specific errors
        raise AdapterError(f"{file} cannot be read as a tokenizer: {error}") from None
