"""The tokens that may follow the beginning of an answer: llguidance follows a grammar token by token.

    allowed     one bit for each token of the vocabulary: whether an answer that began so may go on with it
    forced      the tokens that can only follow now, which need no forward pass
    take        the answer went on with a token; returns those that are forced by it
    problem     why the answer cannot go on, where following it takes too much

Schemas, regular expressions and grammars come from strangers, so what one may take is bounded: its size, the work of
compiling it and of each token, and the states that it keeps. One that goes beyond ends with a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from rankwise.config.base import JsonObject
from rankwise.errors import ConfigError, one_line
from rankwise.system.extras import need_extra

LIMITS = {
    "initial_lexer_fuel": 2_000_000, "step_lexer_fuel": 200_000, "step_max_items": 50_000, "max_lexer_states": 50_000,
    "max_grammar_size": 200_000, "verbose_errors": False,
}  # fmt: skip
BEGINNING = 16
"""Tokens of an answer that are tried before a constraint is accepted."""


def engine() -> Any:
    """The class of llguidance that reads grammars and follows them."""
    need_extra("llguidance", "a constraint on answers", "schema", ConfigError)
    from llguidance import LLMatcher

    return LLMatcher


class Vocabulary:
    """The tokens of a model. `tokenizer` is the JSON of a tokenizer of the tokenizers library, `size` the number of
    logits, and `ends` the tokens that end an answer."""

    def __init__(self, tokenizer: str, size: int, ends: Sequence[int]) -> None:
        engine()
        from llguidance import LLParserLimits, LLTokenizer

        self.size, self.ends, self.limits = size, tuple(ends), LLParserLimits(**LIMITS)
        try:
            self.tokens = LLTokenizer(
                tokenizer, n_vocab=None if tokenizer == "byte" else size, eos_token=list(ends) or None
            )
        except ValueError as error:
            raise ConfigError([f"answers of this model cannot be constrained: {one_line(str(error), 200)}."]) from None


@lru_cache(maxsize=1)
def of_bytes() -> Vocabulary:
    """Every byte is a token; what checks texts."""
    return Vocabulary("byte", 262, (261,))


def json_options(spaces: int = 1) -> JsonObject:
    """How JSON is written: with so much white space between two of its tokens at most, and with letters escaped or not,
    since Python's json.dumps escapes what is not ASCII."""
    pattern = {0: None, 1: " ?"}.get(spaces, rf"[ \t\r\n]{{0,{spaces}}}")
    return {
        "whitespace_flexible": spaces > 0, "whitespace_pattern": pattern, "json_allow_general_unicode_escapes": True,
    }  # fmt: skip


@lru_cache(maxsize=64)
def problem_of(grammar: str, vocabulary: Vocabulary) -> str | None:
    """Why no answer of these tokens can follow the grammar; None if one can."""
    if problem := engine().validate_grammar(grammar, vocabulary.tokens, limits=vocabulary.limits):
        return one_line(problem.partition("\n   1 | ")[0], 200)
    matcher = Matcher(vocabulary, grammar)
    for at in range(BEGINNING):
        allowed = matcher.allowed()
        if matcher.problem is not None or not allowed.any():
            return matcher.problem or (None if at else "no text fits it")
        token = int(allowed.argmax())
        if token in vocabulary.ends:
            return None
        matcher.take(token)
    return None


@lru_cache(maxsize=16)
def begun(vocabulary: Vocabulary, grammar: str) -> Any:
    """Compiled once for each vocabulary; an answer has a copy of it."""
    return engine()(vocabulary.tokens, grammar, log_level=0, limits=vocabulary.limits)


class Matcher:
    """What one answer may go on with, by a grammar of llguidance."""

    def __init__(self, vocabulary: Vocabulary, grammar: str) -> None:
        self._vocabulary, self._matcher = vocabulary, begun(vocabulary, grammar).deep_copy()

    @property
    def problem(self) -> str | None:
        """Why it cannot be followed any more; None if it can."""
        if not self._matcher.is_error():
            return None
        return "the constraint on answers cannot be followed any further (too many alternatives)"

    def allowed(self) -> np.ndarray:
        """One boolean for each token (V,)."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, bitorder="little", count=self._vocabulary.size).view(bool)

    def take(self, token: int) -> list[int]:
        """Go on with a token. Returns those that must follow it."""
        if token in self._vocabulary.ends:
            return []
        self._matcher.consume_token(token)
        return self.forced()

    def forced(self) -> list[int]:
        """Take the tokens that can only follow now, and return them, with an end token where nothing else can."""
        forced = self._matcher.compute_ff_tokens()
        if forced:
            self._matcher.consume_tokens(forced)
        if self._matcher.is_stopped() and self._vocabulary.ends and not self._matcher.is_error():
            return [*forced, self._vocabulary.ends[0]]
        return forced


def follows(grammar: str, answer: str) -> bool:
    """Whether a whole text is an answer."""
    matcher, written = begun(of_bytes(), grammar).deep_copy(), list(answer.encode())
    return matcher.try_consume_tokens(written) == len(written) and matcher.is_accepting()
