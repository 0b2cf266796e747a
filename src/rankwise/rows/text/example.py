"""A checked row, before templates and tokenizers: a conversation, a plain text, an image, or words with tags.

Reasoning in an answer is what a model writes between <think> and </think> before it answers:

    <think> reasoning </think> answer end       learn: all of it is in the loss
                               answer end       mask: the reasoning is read and is not in the loss

A template may write the tags itself, open them in the prompt, or write an empty thought before an answer that has none.
What a model must write itself after its prompt is what can be learned.

Tags stand for spans of words:

    B-x    the first word of a span of type x
    I-x    a further word of a span of type x; where none is open, the first word of one, as in conlleval
    O      a word of no span
    x      a name alone, such as a part of speech; equal names in a row are one span

A word is a run of letters, digits and underscores, or one other character that is no white space. In scripts that are
written without spaces, such as Chinese, Japanese and Thai, each character is a word.

A call of a tool in a written answer is a JSON object. Around it chat templates write marks of their own:

    <tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>      Hermes, Qwen, SmolLM
    [TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome"}}]               Mistral
    {"name": "weather", "parameters": {"city": "Rome"}}                            Llama 3
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

OUTSIDE, BEGIN, INSIDE = "O", "B-", "I-"
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+|[^\w\s]")

Range = tuple[int, int]
"""First and end, which is exclusive."""


@dataclass(frozen=True)
class TaggedWords:
    words: tuple[Range, ...]
    """Where each word begins and ends in the text, in characters."""
    tags: tuple[str, ...] = ()
    """One for each word; none where a text is only to be tagged."""
    widened: tuple[str, ...] = ()
    """The texts of spans that began or ended inside a word, and were widened to whole words."""
    is_split: bool = False
    """Whether the row gave the words one by one, and not a text."""


@dataclass(frozen=True)
class Span:
    """Words from `first` to `stop`, which is exclusive."""

    first: int
    stop: int
    label: str


def words_of(text: str) -> tuple[Range, ...]:
    return tuple(match.span() for match in _WORD.finditer(text))


def joined(words: Sequence[str]) -> tuple[str, tuple[Range, ...]]:
    """Words as one text with a space between two, and where each lies in it."""
    ranges, at = list[Range](), 0
    for word in words:
        ranges.append((at, at + len(word)))
        at += len(word) + 1
    return " ".join(words), tuple(ranges)


def label_in(tag: str) -> str | None:
    """The type of span that a tag belongs to; None outside of any."""
    if tag == OUTSIDE:
        return None
    return tag[len(BEGIN) :] if tag.startswith((BEGIN, INSIDE)) else tag


def spans_of(tags: Sequence[str]) -> list[Span]:
    spans, first, label = list[Span](), 0, None
    for at, tag in enumerate([*tags, OUTSIDE]):
        own = label_in(tag)
        if own == label and not tag.startswith(BEGIN):
            continue
        if label is not None:
            spans.append(Span(first, at, label))
        first, label = at, own
    return spans


def strays_in(tags: Sequence[str]) -> int:
    """Tags I-x that no tag of the same type comes before, which begin a span as B-x would."""
    pairs = zip([OUTSIDE, *tags], tags, strict=False)
    return sum(tag.startswith(INSIDE) and label_in(before) != label_in(tag) for before, tag in pairs)


OPEN, CLOSE = "<think>", "</think>"


def parted(content: str) -> tuple[str | None, str]:
    """Reasoning and answer of a message; None where it has no reasoning."""
    thought, close, answer = content.partition(CLOSE)
    if not close:
        return None, content
    return thought.strip().removeprefix(OPEN).strip(), answer


def with_thought(thought: str, answer: str) -> str:
    """A thought and an answer as the content of one message, with the tags that chat templates know."""
    return f"{OPEN}\n{thought.strip()}\n{CLOSE}\n\n{answer}"


def without_thought(text: str) -> str:
    """What a model answered, without the reasoning before it; all of it where the reasoning did not end."""
    return text.partition(CLOSE)[2].lstrip() if CLOSE in text else text


def may_be_thought(text: str, opened: bool) -> bool:
    """Whether what was written so far may still be reasoning. `opened`: the prompt has the first tag."""
    begun = text.lstrip()
    return CLOSE not in text and (opened or begun.startswith(OPEN) or OPEN.startswith(begun))


BREAK = "\ufdd0"
"""A character inserted into a control token that somebody typed, so that it is not read as a control token.

Unicode reserves this character for internal use. It is removed before tokenizing (rows/text/tokenize.py).
"""
Role = Literal["system", "user", "assistant", "tool"]
Database = tuple[str, str]
"""What SQL answers are run on: ("database", a SQLite file) or ("tables", statements that create and fill tables)."""


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool. `arguments` is a JSON object."""

    name: str
    arguments: dict[str, Any]
    call_id: str | None = None


_MARKS = re.compile(r"(<tool_call>|<\|python_tag\|>|\[TOOL_CALLS\]|\[|```(json)?|\s)*$")
"""What models write before the first call. The marks around calls differ, so their objects alone are looked for:

    <tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>      Hermes, Qwen, SmolLM
    [TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome"}}]               Mistral
    {"name": "weather", "parameters": {"city": "Rome"}}                            Llama 3
"""
MOST_CALLS = 64


def calls_in(text: str, names: Collection[str] | None = None) -> tuple[str, list[ToolCall]]:
    """The content before the first call, and the calls of the tools of these names, or of any; the whole text where
    there are none."""
    found = list(islice(placed_calls(text, names), MOST_CALLS))
    return (_MARKS.sub("", text[: found[0][0]]), [call for _, _, call in found]) if found else (text, [])


def placed_calls(text: str, names: Collection[str] | None = None) -> Iterator[tuple[int, int, ToolCall]]:
    """Each call, with where its object begins and ends."""
    decoder, place = json.JSONDecoder(), text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            value, end = None, place + 1
        call = _call_of(value)
        if call is not None and (names is None or call.name in names):
            yield place, end, call
        place = text.find("{", end)


def _call_of(value: Any) -> ToolCall | None:
    arguments = value.get("arguments", value.get("parameters")) if isinstance(value, dict) else None
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict) or not isinstance(value.get("name"), str):
        return None
    return ToolCall(value["name"], arguments)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    context: str = ""
    """Text that the question is about, such as Alpaca's input or Dolly's context."""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    """Name of the tool, in a tool's result."""
    call_id: str | None = None
    """Id of the call that a tool's result belongs to."""
    learned: bool = True
    """Whether an answer is in the loss. False for OpenAI's weight 0."""

    @property
    def text(self) -> str:
        """The content with its context below, for templates without a place for a context."""
        return f"{self.content}\n\n{self.context}" if self.context.strip() else self.content


@dataclass(frozen=True, eq=False)
class ImageContent:
    """An image that is not decoded yet."""

    source: Path | bytes | np.ndarray
    """A file, the bytes of a file, or pixels: (H, W), (H, W, 1) or (H, W, 3)."""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What is known of an image once it was decoded. `width` and `height` are those of the upright image."""

    width: int
    height: int
    notes: tuple[str, ...]
    """What was changed in decoding it."""
    content: bytes
    """A hash of its pixels."""
    perceptual: int | None
    """A hash of 64 bits that is nearly the same for images that look the same; None for an image of one colour."""


@dataclass(frozen=True)
class Example:
    """A conversation that ends with an answer, or a plain text that is in the loss as a whole.

    `where` is `file:line`, for messages about this row.
    """

    messages: tuple[Message, ...]
    where: str
    tools: tuple[dict[str, Any], ...] = field(default=())
    """The tools that can be called, each as a JSON schema in OpenAI's format."""
    text: str | None = None
    """The plain text; then there are no messages."""
    group: str | None = None
    """The row's value of data.group."""
    rejected: tuple[Message, ...] = ()
    """For a preference pair: the conversation with the rejected answer; `messages` have the chosen one."""
    alternatives: tuple[str, ...] = ()
    """Other correct answers in place of the last one. They are not trained on."""
    image: ImageContent | None = None
    """The image of an image's row. Then the first message is its name, and the second its label."""

    labels: tuple[str, ...] | None = None
    """The names of a row whose label is a list of names. Then the second message is all of them."""
    tagged: TaggedWords | None = None
    """The words of a text with tags. Then the first message is the text, and the second what the tags stand for."""
    database: Database | None = None
    """What the answer is run on to be scored, if it is SQL."""

    @property
    def conversations(self) -> Sequence[tuple[Message, ...]]:
        """The row's conversations: its messages and, for a preference pair, those with the rejected answer."""
        return [self.messages, *([self.rejected] if self.rejected else [])]

    @property
    def question(self) -> Example:
        """This row without its answer, as a row that is to be answered."""
        tagged = self.tagged and replace(self.tagged, tags=())
        return Example(self.messages[:-1], self.where, self.tools, image=self.image, tagged=tagged)

    @property
    def exchange(self) -> tuple[str, str] | None:
        """The question and the answer of a row that has no other turns."""
        turns = self.messages[1:] if self.system is not None else self.messages
        if len(turns) != 2 or self.tools or self.tagged is not None or turns[1].tool_calls:
            return None
        return (turns[0].text, turns[1].content) if turns[0].role == "user" else None

    @property
    def last_answer(self) -> str | None:
        """The last answer without its reasoning; None where the row has none, or one that calls tools."""
        last = self.messages[-1] if self.messages else None
        return None if last is None or last.tool_calls else without_thought(last.content)

    @property
    def special(self) -> tuple[str, str] | None:
        """For a row that only some objectives learn as it is meant: its form, and what such rows hold, as the end of a
        message; None for other rows."""
        if self.rejected:
            return "pairs", "preference pairs. Add --objective preference."
        if self.tagged is not None:
            return "tags", "words with tags. Add --objective token-classification."
        if self.image is not None:
            return "images", (
                "images, and the model {model} reads texts. Choose a vision model with --model, such as dinov2-small."
            )
        return None

    @property
    def prompt_text(self) -> str:
        """Everything before the last answer, without the system message; for a plain text, the text."""
        turns = [message.text for message in self.messages[:-1] if message.role != "system"]
        return "\n".join(turns) if self.text is None else self.text

    @property
    def full_text(self) -> str:
        """The row as one text without the system message, for the search for duplicates."""
        every = chain.from_iterable(self.conversations)
        turns = [f"{turn.role}: {turn.text}{_calls(turn)}" for turn in every if turn.role != "system"]
        return "\n".join(turns) if self.text is None else self.text

    @property
    def system(self) -> str | None:
        first = self.messages[0] if self.messages else None
        return first.content if first is not None and first.role == "system" else None


def _calls(message: Message) -> str:
    return "".join(f" {call.name}({call.arguments})" for call in message.tool_calls)
