"""The hub's tokenizer behind our two protocols: Tokenizer (text to ids) and Template (conversation to text).

Templates that can write a model's thoughts are asked not to, in training and in use alike. A model without a chat
template gets a plain one, so that a base model can be tuned and asked alike:
"User: …\nAssistant: …" with the model's end token after each answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from rankwise.data.example import Message
from rankwise.errors import TemplateError

PROBE = "an answer like no other"
SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant"}


class HubTokenizer:
    """`end_ids` are the ids after which an answer is complete."""

    def __init__(self, hub: Any, end_ids: Sequence[int]) -> None:
        self.hub = hub
        self.end_ids = tuple(dict.fromkeys((*end_ids, *self._ends_of_template())))

    @property
    def end_tokens(self) -> list[str]:
        return [self.hub.convert_ids_to_tokens(token) for token in self.end_ids]

    @cached_property
    def pad_id(self) -> int:
        return next((token for token in (self.hub.pad_token_id, *self.end_ids) if token is not None), 0)

    @property
    def has_template(self) -> bool:
        return bool(self.hub.chat_template)

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self.hub(text, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], encoded["offset_mapping"]

    def decode(self, ids: Sequence[int]) -> str:
        return self.hub.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def text(self, messages: Sequence[Message], *, answer_next: bool = False) -> str:
        self._refuse_control_tokens(messages)
        if not self.has_template:
            return self._plain(messages, answer_next)
        return self._rendered(messages, answer_next)

    def _rendered(self, messages: Sequence[Message], answer_next: bool) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self.hub.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=answer_next, enable_thinking=False
            )
        except Exception as error:  # a template may raise anything, by its own raise_exception or by a fault in it
            roles = ", ".join(message.role for message in messages)
            raise TemplateError(f"the model's chat template refuses a conversation of {roles}: {error}") from None

    def answer_text(self, ids: Sequence[int]) -> str:
        """What a person should read of generated ids. The plain template's answers begin with a space of its own."""
        text = self.hub.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text if self.has_template else text.removeprefix(" ")

    @cached_property
    def _special(self) -> dict[int, str]:
        """Tokens that are no text, by id; a tokenizer's own list of names has only some of them."""
        return {number: str(token) for number, token in self.hub.added_tokens_decoder.items() if token.special}

    @cached_property
    def _probe(self) -> str:
        """A conversation as the template writes it; nothing without a template, or with one that refuses this one."""
        turns = [Message("user", "?"), Message("assistant", PROBE)]
        try:
            return self._rendered(turns, False) if self.has_template else ""
        except TemplateError:  # the real conversation will be refused with the template's own words
            return ""

    @cached_property
    def _control_tokens(self) -> list[str]:
        """Special tokens with which conversations are built. Others are rare, and may be honest text."""
        return [token for token in self._special.values() if token in self._probe or token in self.end_tokens]

    def _refuse_control_tokens(self, messages: Sequence[Message]) -> None:
        """In a message they would end turns and begin others: the model would be shown another conversation."""
        for number, message in enumerate(messages, start=1):
            found = next((token for token in self._control_tokens if token in message.content), None)
            if found is not None:
                raise TemplateError(
                    f"turn {number} ({message.role}) holds {found!r}, which this model reads as the border of a turn, "
                    "not as text. Take it out."
                )

    def _ends_of_template(self) -> list[int]:
        """The special token that the template writes right after an answer: some models' settings do not name it."""
        first = self.encode(self._probe.partition(PROBE)[2].lstrip())[0][:1]
        return [token for token in first if token in self._special]

    def _plain(self, messages: Sequence[Message], answer_next: bool) -> str:
        end = self.end_tokens[0] if self.end_tokens else ""
        turns = [
            f"{SPEAKERS[message.role]}: {message.content}{end if message.role == 'assistant' else ''}\n"
            for message in messages
        ]
        return self._start + "".join(turns) + ("Assistant:" if answer_next else "")

    @cached_property
    def _start(self) -> str:
        """The token that this tokenizer puts before every text, if it does."""
        first = self.hub("a")["input_ids"][:1]
        return self.hub.bos_token if self.hub.bos_token_id is not None and first == [self.hub.bos_token_id] else ""
