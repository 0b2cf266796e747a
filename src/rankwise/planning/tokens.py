"""How many tokens a text has: by the model's own tokenizer where it is on this machine, and else by its characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rankwise.errors import ModelError, first_line
from rankwise.system.foreign_json import read_if_sound

CHARACTERS = 4.0
"""How many characters a token is assumed to have where there is no tokenizer."""
LONG = 20_000
"""Characters of a text that are counted; what follows is taken to be like it."""


@dataclass(frozen=True)
class TokenCounter:
    folder: Path | None = None
    """The model's; None where it is not here."""

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        settings = None if self.folder is None else read_if_sound(self.folder / "tokenizer_config.json")
        return settings if isinstance(settings, dict) else {}

    @cached_property
    def template(self) -> str | None:
        """The model's own chat template."""
        file = None if self.folder is None else self.folder / "chat_template.jinja"
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

        file = None if self.folder is None else self.folder / "tokenizer.json"
        if file is None or not file.is_file():
            return None
        try:
            tokenizer = Tokenizer.from_file(str(file))
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
