"""The model's own tokenizer and chat template, to count tokens as a training does, without torch and transformers.

`tokenizer.json` of the model's folder is read, or the tokenizer in its GGUF file, of which two kinds are read:
byte-level BPE, and SentencePiece's BPE, whose merges follow from the scores of its pieces where the file lists none.
Where none is on this machine, or of another kind, tokens are taken from characters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rankwise.config.base import shown
from rankwise.errors import ModelError, first_line
from rankwise.planning.gguf_header import read_gguf_header
from rankwise.system.foreign_json import read_if_sound

CHARACTERS = 4.0
"""Of one token, where no tokenizer is here."""
LONG = 20_000
"""Characters of a text that are counted; what follows is taken to be like it."""
PREFIX = "tokenizer.ggml."
FAMILY, TEMPLATE = "general.architecture", "tokenizer.chat_template"
MODEL, TOKENS, MERGES, SCORES = (f"{PREFIX}{name}" for name in ("model", "tokens", "merges", "scores"))
BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"
"""What MODEL may be."""
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""GGUF's names of the special tokens, by transformers'."""
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


@dataclass(frozen=True)
class TokenCounter:
    """`model` is the model's folder or GGUF file; None where neither is here."""

    model: Path | None = None

    @cached_property
    def _vocabulary(self) -> dict[str, Any] | None:
        """Of a GGUF file."""
        file = self.model
        return None if file is None or file.is_dir() or not holds_tokenizer(file) else checked_vocabulary(file)

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """As a tokenizer_config.json has them."""
        if self._vocabulary is not None:
            return template_settings(self._vocabulary)
        settings = None if self.model is None else read_if_sound(self.model / "tokenizer_config.json")
        return settings if isinstance(settings, dict) else {}

    @cached_property
    def template(self) -> str | None:
        """The model's own chat template."""
        file = None if self.model is None else self.model / "chat_template.jinja"
        if file is not None and file.is_file():
            return file.read_text(encoding="utf-8", errors="replace")
        source = self.settings.get("chat_template")
        if isinstance(source, list):  # several, by name
            several = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
            source = several.get("default")
        return source if isinstance(source, str) else None

    def special(self, name: str) -> str:
        """The text of a special token such as `bos_token`, empty where there is none."""
        value = self.settings.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        return text if isinstance(text, str) else ""

    @cached_property
    def _tokenizer(self) -> Any:
        """As the tokenizers library has it; None where none is here."""
        from tokenizers import Tokenizer

        file = None if self.model is None else self.model if self._vocabulary else self.model / "tokenizer.json"
        if file is None or not file.is_file():
            return None
        try:
            tokenizer = gguf_tokenizer(self._vocabulary) if self._vocabulary else Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise ModelError(f"{file}: cannot be read as a tokenizer: {first_line(error)}.") from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @property
    def exact(self) -> bool:
        """Whether tokens are counted by the model's tokenizer."""
        return self._tokenizer is not None

    def count(self, texts: Sequence[str]) -> list[int]:
        """The tokens of texts as they stand inside others."""
        if not self.exact:
            return [round(len(text) / CHARACTERS) for text in texts]
        begun = [text[:LONG] for text in texts]
        self._tokenizer.encode_special_tokens = False
        encoded = self._tokenizer.encode_batch_fast(begun, add_special_tokens=False)
        pairs = zip(texts, begun, encoded, strict=True)
        return [round(len(one) * len(text) / max(1, len(first))) for text, first, one in pairs]

    def count_whole(self, pairs: Sequence[tuple[str, str]], around: int) -> list[int]:
        """The tokens of each text, or pair of texts, with the special tokens around them: `around`, where no tokenizer
        is here. Two texts are joined by a blank line where the tokenizer has no separator."""
        if not self.exact:
            return [round((len(text) + len(pair)) / CHARACTERS) + around + bool(pair) for text, pair in pairs]
        joins = not self.settings.get("sep_token")
        inputs = ["\n\n".join(filter(None, pair)) if joins or not pair[1] else pair for pair in pairs]
        self._tokenizer.encode_special_tokens = True
        return [len(encoded) for encoded in self._tokenizer.encode_batch_fast(inputs, add_special_tokens=True)]


def _are(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(one, kinds) for one in value)


EXPECTED: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    **{key: ("a text", lambda value: isinstance(value, str)) for key in (FAMILY, MODEL, f"{PREFIX}pre", TEMPLATE)},
    TOKENS: ("a list of texts", _are(str)), f"{PREFIX}token_type": ("a list of numbers", _are(int)),
    SCORES: ("a list of numbers", _are(int, float)),
    MERGES: ("a list of pairs", lambda value: _are(str)(value) and all(one.count(" ") == 1 for one in value)),
}  # fmt: skip
"""What each setting of a tokenizer is, where it is there."""
RULES = {name: rule for (rule, _), name in SPLITS.items() if "gpt-2" not in rule}


def holds_tokenizer(file: Path) -> bool:
    """Whether the file is a GGUF file with a tokenizer of a kind that is read."""
    if file.suffix.lower() != ".gguf" or not file.is_file():
        return False
    return read_gguf_header(file).settings.get(MODEL) in (BYTE_LEVEL, SENTENCEPIECE)


def checked_vocabulary(file: Path) -> dict[str, Any]:
    """The file's settings with those of its tokenizer. ModelError where these are of kinds that no reader can use."""
    settings: dict[str, Any] = {**read_gguf_header(file, vocabulary=True).settings}
    order = MERGES if settings.get(MODEL) == BYTE_LEVEL else SCORES if settings.get(MODEL) == SENTENCEPIECE else MODEL
    needed = (MODEL, TOKENS, *([] if MERGES in settings else [order]))
    problems = [f'setting "{key}" is missing.' for key in dict.fromkeys(needed) if key not in settings]
    problems += [
        f'setting "{key}" is {shown(settings[key])}: {wanted} is expected.'
        for key, (wanted, fits) in EXPECTED.items() if key in settings and not fits(settings[key])
    ]  # fmt: skip
    for key in (f"{PREFIX}{name}_token_id" for name in SPECIAL.values() if not problems):
        if (number := settings.get(key, 0)) not in range(len(settings[TOKENS])):
            problems.append(f'setting "{key}" is {shown(number)}: the number of a token is expected.')
    if problems:
        raise ModelError("\n  ".join([f"{file} cannot be used; download or make the file again:", *problems]))
    return settings


def template_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The chat template and the special tokens of a checked vocabulary, as a tokenizer_config.json names them."""
    numbers = {name: settings.get(f"{PREFIX}{key}_token_id") for name, key in SPECIAL.items()}
    named = {f"{name}_token": settings[TOKENS][number] for name, number in numbers.items() if number is not None}
    return named | {"chat_template": settings.get(TEMPLATE)}


def gguf_tokenizer(settings: Mapping[str, Any]) -> Any:
    """That of a checked vocabulary, as the tokenizers library has it."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    tokens, listed, of_bytes = settings[TOKENS], settings.get(MERGES), settings[MODEL] == BYTE_LEVEL
    gemma = settings[FAMILY].startswith("gemma")
    if gemma:  # runs of spaces are written as such
        tokens = [MARK * len(token) if " " in token and token.isspace() else token for token in tokens]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    scores = range(0, -len(tokens), -1) if gemma else settings.get(SCORES, ())
    merges = _merges(vocabulary, scores) if listed is None else [tuple(pair.split(" ")) for pair in listed]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, fuse_unk=not of_bytes, byte_fallback=not of_bytes))
    if of_bytes:
        rule = RULES.get(settings.get(f"{PREFIX}pre", ""))
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule is None)
        first = [] if rule is None else [pre_tokenizers.Split(Regex(rule), "isolated")]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, byte_level])
    elif gemma or settings[FAMILY] == "phi3":
        before = [] if gemma else [normalizers.Prepend(MARK)]
        tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", MARK)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(MARK, prepend_scheme="first", split=False)
    kinds = settings.get(f"{PREFIX}token_type", ())
    for kind in (CONTROL, USER_DEFINED):
        added = [token for token, own in zip(tokens, kinds, strict=False) if own == kind]
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=kind == CONTROL) for token in added])
    return tokenizer


def _merges(vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
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
