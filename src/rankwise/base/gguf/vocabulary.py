"""A tokenizer as GGUF stores it: pieces with types, and merges or scores, and by which name llama.cpp splits text.

Byte-level BPE is recognised by the rule that splits text into words, never by the family's name: the rule is what
decides the ids. BPE over characters with bytes as a last resort (SentencePiece's form) is stored with a score for each
piece, and llama.cpp joins the pair whose piece scores best. That is the same as merges in their order if

    every pair of pieces that spells a third one is among the merges, and the pairs of one piece follow each other;

both are checked, and the score is minus the place of the piece. A tokenizer that fits neither form is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rankwise.errors import ModelError
from rankwise.rows.text.tokenizer import HubTokenizer

Fields = dict[str, "int | float | bool | str | list[str] | list[int] | list[float]"]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
NO_SCORE = -1e9
PREFIX = "tokenizer.ggml."
MARK = "\u2581"
"""SentencePiece's visible space."""
_CASES = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])")
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS: Mapping[tuple[str, bool], str] = {
    ("gpt-2", False): "gpt-2",
    ("digits, gpt-2", False): "smollm",
    **{(case + _WORDS % r"\p{N}{1,3}", whole): name for case in _CASES
       for whole, name in ((True, "llama-bpe"), (False, "smaug-bpe"))},
    **{(case + _WORDS % r"\p{N}", False): "qwen2" for case in _CASES},
    (_TEKKEN, True): "tekken",
}  # fmt: skip
"""llama.cpp's name of a rule, by the rule and whether a word that is itself a piece is taken without merging."""


def vocabulary_fields(tokenizer: HubTokenizer, size: int, described: str) -> tuple[Fields, list[str]]:
    """The fields of a tokenizer with `size` rows in its embedding, and sentences about what llama.cpp reads otherwise.

    ModelError for a tokenizer that GGUF cannot carry; `described` names it."""
    parts: dict[str, Any] = json.loads(tokenizer.hub.backend_tokenizer.to_str())
    model = parts["model"]
    if model.get("type") != "BPE":
        raise _refused(described, f"its model is {model.get('type')}, and only BPE is written")
    if model.get("byte_fallback"):
        fields, scores = _sentencepiece(parts, described), _scores(model, described)
    else:
        merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
        fields, scores = _byte_level(parts, described) | {"merges": merges}, None
    tokens, types = _tokens(parts, size, described)
    fields |= {"tokens": tokens, "token_type": types, **_special_ids(tokenizer)}
    if scores is not None:
        fields["scores"] = [scores.get(token, NO_SCORE) for token in tokens]
    fields["add_eos_token"] = False
    return {f"{PREFIX}{key}": value for key, value in fields.items()}, _notes(parts)


def split_name(tokenizer: HubTokenizer) -> str | None:
    """llama.cpp's name of the rule by which a byte-level tokenizer splits text; None for another tokenizer or rule."""
    return _split_name(json.loads(tokenizer.hub.backend_tokenizer.to_str()))


def _split_name(parts: Mapping[str, Any]) -> str | None:
    steps = _steps(parts.get("pre_tokenizer"), "pretokenizers")
    kinds = [step["type"] for step in steps]
    if not steps or kinds[-1] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    if kinds[:-1] == ["Split"] and not steps[-1].get("use_regex"):
        split = steps[0]
        rule = split["pattern"].get("Regex") if split["behavior"] == "Isolated" and not split["invert"] else None
    elif kinds[:-1] == ["Digits"] and steps[0]["individual_digits"]:
        rule = "digits, gpt-2" if steps[-1].get("use_regex") else None
    else:
        rule = "gpt-2" if kinds == ["ByteLevel"] and steps[0].get("use_regex") else None
    return SPLITS.get((rule or "", bool(parts["model"].get("ignore_merges"))))


def _steps(part: Mapping[str, Any] | None, name: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return list(part[name]) if part["type"] == "Sequence" else [dict(part)]


def _byte_level(parts: Mapping[str, Any], described: str) -> Fields:
    name = _split_name(parts)
    if name is None:
        known = ", ".join(sorted(set(SPLITS.values())))
        raise _refused(described, f"its rule that splits text into words is none of those known here ({known})")
    if any(step["type"] != "NFC" for step in _steps(parts.get("normalizer"), "normalizers")):
        raise _refused(described, "it changes text before it splits it")
    return {"model": "gpt2", "pre": name}


def _sentencepiece(parts: Mapping[str, Any], described: str) -> Fields:
    """Spaces are written as marks, by a normalizer or by Metaspace, and one may be put before the text."""
    normal = _steps(parts.get("normalizer"), "normalizers")
    before = _steps(parts.get("pre_tokenizer"), "pretokenizers")
    kinds = ([step["type"] for step in normal], [step["type"] for step in before])
    replaces = bool(normal) and normal[-1].get("content") == MARK and normal[-1].get("pattern") == {"String": " "}
    if kinds[0] == ["Replace"] and replaces and kinds[1] in ([], ["Split"]):
        prefix = False
    elif kinds == (["Prepend", "Replace"], []) and replaces and normal[0]["prepend"] == MARK:
        prefix = True
    elif kinds == ([], ["Metaspace"]) and not before[0].get("split") and before[0]["prepend_scheme"] != "first":
        prefix = before[0]["prepend_scheme"] == "always"
    else:
        raise _refused(described, "it puts spaces before texts, or splits them, in a way that llama.cpp does not")
    return {"model": "llama", "pre": "default", "add_space_prefix": prefix}


def _scores(model: Mapping[str, Any], described: str) -> dict[str, float]:
    """Minus the place of each piece that merges make."""
    scores: dict[str, float] = {}
    pairs: set[tuple[str, str]] = set()
    last = ""
    for pair in model["merges"]:
        first, second = pair if isinstance(pair, list) else pair.split(" ", 1)
        piece = first + second
        if piece in scores and piece != last:
            raise _refused(described, "the merges of one piece do not follow each other, so no score stands for them")
        scores.setdefault(piece, -float(len(scores)))
        pairs.add((first, second))
        last = piece
    words = model["vocab"]
    for piece in scores:
        for cut in range(1, len(piece)):
            if piece[:cut] in words and piece[cut:] in words and (piece[:cut], piece[cut:]) not in pairs:
                raise _refused(described, "some pairs of pieces that spell a third one are not among its merges")
    return scores


def _tokens(parts: Mapping[str, Any], size: int, described: str) -> tuple[list[str], list[int]]:
    """Every row of the embedding has a piece; rows that the tokenizer does not name are unused."""
    model = parts["model"]
    tokens, types = [f"[PAD{number}]" for number in range(size)], [UNUSED] * size
    words = [(number, token, NORMAL) for token, number in model["vocab"].items()]
    plain = MARK if model.get("byte_fallback") else ""
    for added in parts["added_tokens"]:
        content = added["content"]
        if not added["special"] and plain:
            content = content.replace(plain, " ")
        words.append((added["id"], content, CONTROL if added["special"] else USER_DEFINED))
    if over := [token for number, token, _ in words if number >= size]:
        raise _refused(described, f"its token {over[0]!r} has no row in the model's embedding, which has {size:,}")
    for number, token, kind in words:
        tokens[number], types[number] = token, kind
    if model.get("byte_fallback"):
        for byte in range(256):
            if (number := model["vocab"].get(f"<0x{byte:02X}>")) is not None:
                types[number] = BYTE
        if (unknown := model["vocab"].get(model.get("unk_token") or "")) is not None:
            types[unknown] = UNKNOWN
    return tokens, types


def _special_ids(tokenizer: HubTokenizer) -> Fields:
    hub = tokenizer.hub
    named = {"bos": hub.bos_token_id, "unknown": hub.unk_token_id, "padding": hub.pad_token_id}
    return {f"{name}_token_id": number for name, number in named.items() if number is not None}


def end_fields(ends: tuple[int, ...]) -> Fields:
    """The tokens that end an answer: GGUF has a field for the end of a text, and one for the end of a turn."""
    fields = zip(("eos_token_id", "eot_token_id", "eom_token_id"), dict.fromkeys(ends), strict=False)
    return {f"{PREFIX}{name}": number for name, number in fields}


def _notes(parts: Mapping[str, Any]) -> list[str]:
    notes = []
    if any(step["type"] == "NFC" for step in _steps(parts.get("normalizer"), "normalizers")):
        notes.append(
            "the tokenizer composes accents and letters (Unicode's NFC) and llama.cpp does not, so texts with separate "
            "accents may be read otherwise"
        )
    stripping = [
        one["content"] for one in parts["added_tokens"] if one["lstrip"] or one["rstrip"] or one["single_word"]
    ]
    if stripping:
        notes.append(
            f"the tokenizer takes the spaces beside {stripping[0]} away"
            f"{f' and beside {len(stripping) - 1} more tokens' if len(stripping) > 1 else ''}, and llama.cpp may keep "
            "them"
        )
    return notes


def _refused(described: str, reason: str) -> ModelError:
    return ModelError(
        f"the tokenizer of {described} cannot be written as GGUF: {reason}. If you have a GGUF file of this base "
        "model, name it with --base-model FILE.gguf, and its tokenizer is copied; or use --format merged."
    )
