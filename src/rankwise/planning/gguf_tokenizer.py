"""The tokenizer and the chat template that a GGUF file holds, to count tokens as a training does, without transformers.

Two kinds are read: byte-level BPE, and SentencePiece's BPE, whose merges follow from the scores of its pieces where the
file lists none. Of any other kind tokens are taken from characters.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwise.errors import ModelError, first_line
from rankwise.planning.gguf_header import Value, read_gguf_header

BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"
"""tokenizer.ggml.model."""
CONTROL, USER_DEFINED = 3, 4
LONGEST_PIECE = 64
"""Characters of a piece that is looked at for the two that it is merged from."""
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
RULES = {name: rule for (rule, _), name in SPLITS.items() if "gpt-2" not in rule}


def holds_tokenizer(file: Path) -> bool:
    """Whether the file is a GGUF file with a tokenizer of a kind that is read."""
    if file.suffix.lower() != ".gguf" or not file.is_file():
        return False
    return read_gguf_header(file).settings.get("tokenizer.ggml.model") in (BYTE_LEVEL, SENTENCEPIECE)


def gguf_tokenizer(file: Path) -> Any:
    """As the tokenizers library has it."""
    settings = _vocabulary(file)
    tokens = settings.get("tokens")
    try:
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise ValueError("tokenizer.ggml.tokens is not a list of texts")
        return _built(settings, tokens, family=str(settings.get("architecture")))
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"{file}: its tokenizer cannot be read: {first_line(error)}.") from None


def template_settings(file: Path) -> dict[str, Any]:
    """The chat template and the special tokens, as a tokenizer_config.json names them."""
    settings = _vocabulary(file)
    tokens = settings.get("tokens")
    named: dict[str, Any] = {"chat_template": settings.get("chat_template")}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        number = settings.get(f"{key}_token_id")
        if isinstance(tokens, list) and isinstance(number, int) and 0 <= number < len(tokens):
            named[f"{name}_token"] = tokens[number]
    return named


def _vocabulary(file: Path) -> dict[str, Value]:
    settings = read_gguf_header(file, vocabulary=True).settings
    return {key.rpartition(".")[2]: value for key, value in settings.items() if key.startswith(("tokenizer.", "general.arch"))}


def _built(settings: Mapping[str, Any], tokens: list[str], family: str) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    of_bytes, gemma = settings["model"] == BYTE_LEVEL, family.startswith("gemma")
    if gemma:  # runs of spaces are written as such
        tokens = [MARK * len(token) if token.isspace() and " " in token else token for token in tokens]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    listed = settings.get("merges")
    scores = range(0, -len(tokens), -1) if gemma else settings.get("scores")
    merges = _merges(vocabulary, scores or []) if listed is None else [tuple(pair.split(" ")) for pair in listed]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, fuse_unk=not of_bytes, byte_fallback=not of_bytes))
    if of_bytes:
        rule = RULES.get(str(settings.get("pre")))
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule is None)
        first = [] if rule is None else [pre_tokenizers.Split(Regex(rule), "isolated")]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, byte_level])
    elif gemma:
        tokenizer.normalizer = normalizers.Replace(" ", MARK)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(MARK, prepend_scheme="first", split=False)
    kinds = settings.get("token_type") or []
    for kind in (CONTROL, USER_DEFINED):
        added = [token for token, own in zip(tokens, kinds, strict=False) if own == kind]
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=kind == CONTROL) for token in added])
    return tokenizer


def _merges(vocabulary: Mapping[str, int], scores: Any) -> list[tuple[str, str]]:
    """Every two pieces that spell a third, those of the best piece first, and of one piece the longest beginning."""
    found = [
        (score, cut, piece)
        for piece, score in zip(vocabulary, scores, strict=False)
        if len(piece) <= LONGEST_PIECE
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    found.sort(key=lambda one: one[:2], reverse=True)
    return [(piece[:cut], piece[cut:]) for _, cut, piece in found]
