"""Answers in the form of OpenAI's API: whole, piece by piece, and as calls of tools."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rankwise.config.base import JsonObject
from rankwise.inference.decoding import UNFINISHED, Draft, Piece
from rankwise.inference.sampling import Chosen
from rankwise.rows.text.example import ToolCall, calls_in
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.serving.questions import Question, tokens_of

FINISH = {"end": "stop", "repetition": "stop", "length": "length", None: None}


@dataclass(frozen=True)
class Reply:
    """`chat` tells the two forms apart."""

    question: Question
    tokenizer: HubTokenizer
    chat: bool
    listed: bool
    """Whether log-probabilities were asked for."""
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def full_reply(self, choices: Sequence[Draft]) -> JsonObject:
        every = [self._choice(number, one) for number, one in enumerate(choices)]
        return self._head("chat.completion" if self.chat else "text_completion") | {
            "choices": every, "usage": self.usage(choices),
        }  # fmt: skip

    def opening(self, number: int) -> JsonObject:
        """The first piece of a chat's answer says who speaks."""
        return self._piece(number, {"role": "assistant", "content": ""}, None, ())

    def piece(self, number: int, piece: Piece) -> JsonObject:
        part = {"content": piece.text} if self.chat else {"text": piece.text}
        return self._piece(number, part if piece.text or not self.chat else {}, FINISH[piece.stopped], piece.chosen)

    def calls(self, number: int, choice: Draft) -> JsonObject:
        """An answer that may call tools, in one piece at its end."""
        message, finish = self._message(choice)
        calls = [{"index": at} | call for at, call in enumerate(message.get("tool_calls", ()))]
        part = {"content": message["content"]} | ({"tool_calls": calls} if calls else {})
        return self._piece(number, part, finish, choice.chosen)

    def last(self, choices: Sequence[Draft]) -> JsonObject:
        """The piece that tells the numbers of tokens."""
        return self._stream_head() | {"choices": [], "usage": self.usage(choices)}

    def usage(self, choices: Sequence[Draft]) -> JsonObject:
        """A prompt counts once, however many answers it has."""
        prompt = tokens_of(self.question.prompts)
        answers = sum(len(one.row.ids) for one in choices)
        reused = sum(one.row.reused for one in choices[:: len(choices) // len(self.question.prompts)])
        return {
            "prompt_tokens": prompt, "completion_tokens": answers, "total_tokens": prompt + answers,
            "prompt_tokens_details": {"cached_tokens": reused},
        }  # fmt: skip

    def _head(self, kind: str) -> JsonObject:
        served = self.question.served
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}", "object": kind, "created": self.created,
            "model": served.name, "system_fingerprint": served.sha256,
        }  # fmt: skip

    def _stream_head(self) -> JsonObject:
        return self._head("chat.completion.chunk" if self.chat else "text_completion")

    def _piece(self, number: int, part: JsonObject, finish: str | None, chosen: Sequence[Chosen]) -> JsonObject:
        logprobs = logprobs_of(chosen, self.tokenizer, chat=self.chat) if self.listed and chosen else None
        own = {"index": number, "finish_reason": finish, "logprobs": logprobs}
        return self._stream_head() | {"choices": [own | ({"delta": part} if self.chat else part)]}

    def _choice(self, number: int, choice: Draft) -> JsonObject:
        message, finish = self._message(choice)
        logprobs = logprobs_of(choice.chosen, self.tokenizer, chat=self.chat) if self.listed else None
        own = {"index": number, "logprobs": logprobs}
        return own | {"finish_reason": finish} | ({"message": message} if self.chat else {"text": message["content"]})

    def _message(self, choice: Draft) -> tuple[JsonObject, str | None]:
        text = choice.answer().text
        content, calls = calls_in(text, self.question.tools) if self.question.tools else (text, [])
        message: JsonObject = {"role": "assistant", "content": content or None if calls else content}
        if not calls:
            return message, FINISH[choice.stopped]
        finish = "length" if choice.stopped == "length" else "tool_calls"
        return message | {"tool_calls": [_as_json(one) for one in calls]}, finish


def logprobs_of(chosen: Sequence[Chosen], tokenizer: HubTokenizer, *, chat: bool) -> JsonObject:
    if chat:
        return {"content": [
            _token(tokenizer, one.token, one.logprob)
            | {"top_logprobs": [_token(tokenizer, *pair) for pair in one.likely]}
            for one in chosen
        ]}  # fmt: skip
    return {
        "tokens": [_text(tokenizer, one.token) for one in chosen], "token_logprobs": [one.logprob for one in chosen],
        "top_logprobs": [{_text(tokenizer, token): value for token, value in one.likely} for one in chosen],
    }  # fmt: skip


def _token(tokenizer: HubTokenizer, token: int, logprob: float | None) -> JsonObject:
    text = tokenizer.decode([token])
    content = list(text.encode()) if UNFINISHED not in text else None
    return {"token": _text(tokenizer, token), "logprob": logprob or 0.0, "bytes": content}


def _text(tokenizer: HubTokenizer, token: int) -> str:
    """The text of a token. A token that is only a part of a character is written as in the vocabulary, so that such
    tokens can be told apart."""
    text = tokenizer.decode([token])
    return text if UNFINISHED not in text else str(tokenizer.hub.convert_ids_to_tokens(token))


def _as_json(call: ToolCall) -> JsonObject:
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def event(value: JsonObject) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


DONE = b"data: [DONE]\n\n"
