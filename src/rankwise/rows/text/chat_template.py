"""Chat templates: the model's own, a recipe's, a plain one, or the one that a run has stored.

All of them are Jinja, rendered as transformers does in a process with limits (rows/text/template_process.py). Templates
that can write a model's reasoning are told not to, in training and at inference alike, unless rows with reasoning are
trained on (data.reasoning). A model without a template gets a plain one, so that a base model can be trained and used:
"User: …\nAssistant: …" with the model's end token after each answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

from rankwise.config.data import Reasoning
from rankwise.config.recipe import Recipe
from rankwise.errors import TemplateError, some
from rankwise.rows.text.example import OPEN, Message, may_be_thought, without_thought
from rankwise.rows.text.template_process import Cut, Result, plain_conversation, render_conversations
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.data_report import TemplateFacts

PROBE = "an answer like no other"
PLAIN = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
Assistant:{% generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}{{ '\\n' }}
{%- elif message.role == 'tool' -%}
{{ raise_exception('this model has no chat template, so it knows no tools') }}
{%- else -%}
{{ {'system': 'System', 'user': 'User'}[message.role] + ': ' + message.content + '\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}Assistant:{%- endif -%}
"""
WITH_TOOLS = "Take a model whose chat template writes tools, such as the starter qwen-0.5b."


Span = tuple[int, int]
Conversation = tuple[Sequence[Message], Sequence[Any]]
"""Messages, and the tools that can be called."""


@dataclass(frozen=True)
class RenderedText:
    """`prefix` is what the tokenizer puts before every text, and `results` what was rendered."""

    messages: Sequence[Message]
    prefix: str
    results: Mapping[Cut, Result]

    @property
    def full_text(self) -> str:
        return self.text(len(self.messages))

    @property
    def spans(self) -> list[Span]:
        """Where {% generation %} marks begin and end in the whole text."""
        shift = len(self.prefix)
        return [(start + shift, stop + shift) for start, stop in self.result(len(self.messages))[1]]

    def text(self, count: int, *, answer_next: bool = False) -> str:
        """The first `count` messages; with `answer_next`, up to the point where the model begins to write."""
        return self.prefix + self.result(count, answer_next)[0]

    def first(self, count: int) -> RenderedText:
        """The first messages as a conversation of their own."""
        return replace(self, messages=self.messages[:count])

    def result(self, count: int, answer_next: bool = False) -> tuple[str, list[Span]]:
        """The text without the prefix, and its marks."""
        result = self.results[count, answer_next]
        if isinstance(result, TemplateError):
            roles = some(message.role for message in self.messages[:count])
            raise TemplateError(f"the chat template refuses a conversation of {roles}: {result}")
        return result


@dataclass(frozen=True)
class ShownContent:
    """What a template shows of conversations of one shape."""

    missing: tuple[str, ...]
    """Parts that the template leaves out."""
    marks_fit: bool
    """Whether each {% generation %} mark begins with its own answer."""
    controls: int
    """Number of control tokens that the template writes."""


@dataclass(frozen=True)
class AnswerText:
    """How generated ids read as an answer: without special tokens, the end, and white space of the template."""

    tokenizer: HubTokenizer
    ends: tuple[str, ...]
    """The ends that are several tokens."""
    before: str
    """White space before the answer, and between answer and end."""
    behind: str
    thinks: bool
    """Whether the model reasons first, which is no part of the answer."""
    begun: bool
    """Whether the prompt begins the reasoning."""

    def read(self, ids: Sequence[int]) -> str:
        text = self._readable(ids)
        place = self._end_at(text)
        return (text.removesuffix(self.behind) if place is None else text[:place].rstrip()).removeprefix(self.before)

    def streamed(self, ids: Sequence[int]) -> str:
        """The part of the answer that later ids cannot change. A possible beginning of an end text is left out."""
        if self.thinks and may_be_thought(self.tokenizer.readable(ids), self.begun):
            return ""
        if not (self.ends or self.behind) or self.has_end(ids):
            return self.read(ids)
        text = self._readable(ids)
        sizes = (size for end in self.ends for size in range(1, len(end)) if text.endswith(end[:size]))
        return text[: len(text) - max(sizes, default=0)].rstrip().removeprefix(self.before)

    def has_end(self, ids: Sequence[int]) -> bool:
        return bool(self.ends) and self._end_at(self.tokenizer.readable(ids)) is not None

    def _readable(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.readable(ids)
        return without_thought(text) if self.thinks else text

    def _end_at(self, text: str) -> int | None:
        return min((place for end in self.ends if (place := text.find(end)) >= 0), default=None)


class ChatTemplate:
    """A chat template. `source` is its Jinja text, or several by name; "tool_use" is for conversations with tools."""

    def __init__(
        self, tokenizer: HubTokenizer, source: str | Mapping[str, str], kind: str, *,
        ends: Sequence[str] | None = None, start: str = "", reasoning: Reasoning = "none",
    ) -> None:  # fmt: skip
        self.tokenizer = tokenizer
        self.reasoning: Reasoning = reasoning
        self.kind = kind
        self.start = tokenizer.start
        self.sources = {"default": source} if isinstance(source, str) else dict(source)
        self._prefix = start
        self.shapes: dict[Any, ShownContent] = {}
        self._placed: dict[str, bool] = {}
        named = tokenizer.hub.special_tokens_map.items()
        self.special_tokens = {name: token for name, token in named if isinstance(token, str)}
        if tokenizer.end_tokens:
            self.special_tokens["eos_token"] = tokenizer.end_tokens[0]
        self._values = {"enable_thinking": self.thinks, **self.special_tokens}
        if ends is None:  # with the special token that the template writes after an answer; some configs do not name it
            special = tokenizer.special.texts
            first = tokenizer.encode(self._probed[0].partition(PROBE)[2].lstrip())[:1]
            ends = (*tokenizer.end_tokens, *(special[token] for token in first if token in special))
        self.ends = tuple(dict.fromkeys(ends))

    @classmethod
    def of_model(cls, tokenizer: HubTokenizer) -> ChatTemplate:
        own = tokenizer.hub.chat_template
        if not own:
            return cls(tokenizer, PLAIN, "plain", ends=tokenizer.end_tokens, start=tokenizer.start)
        return cls(tokenizer, own, "model")

    @classmethod
    def of_recipe(cls, tokenizer: HubTokenizer, recipe: Recipe) -> ChatTemplate:
        own = tokenizer.end_tokens[:1]
        ends = [end for name in recipe.ends for end in (own if name == "eos_token" else [name])]
        if not ends:
            raise TemplateError(
                f"the recipe {recipe.name} ends answers with the model's end token, but the model has none."
            )
        return cls(tokenizer, recipe.template, f"recipe {recipe.name}", ends=ends, start=tokenizer.start)

    @classmethod
    def of_data_report(cls, tokenizer: HubTokenizer, facts: TemplateFacts) -> ChatTemplate:
        return cls(tokenizer, facts.sources, facts.kind, ends=facts.ends, start=facts.start, reasoning=facts.reasoning)

    def with_reasoning(self, reasoning: Reasoning) -> ChatTemplate:
        """This template, set to ask the model to reason unless `reasoning` is "none"."""
        if reasoning == self.reasoning:
            return self
        facts = self.facts.model_copy(update={"reasoning": reasoning})
        return ChatTemplate.of_data_report(self.tokenizer, facts)

    @property
    def thinks(self) -> bool:
        """Whether the model is asked to reason."""
        return self.reasoning != "none"

    @property
    def facts(self) -> TemplateFacts:
        return TemplateFacts(
            kind=self.kind,
            sources=self.sources,
            sha256=self.identity,
            ends=tuple(self.ends),
            start=self._prefix,
            reasoning=self.reasoning,
        )

    @cached_property
    def identity(self) -> str:
        """A hash of everything that decides the rendered text, including the special tokens that the template names."""
        pairs = [*sorted(self.sources.items()), *sorted(self.special_tokens.items())]
        parts = [
            *([self.reasoning] if self.thinks else []),
            self._prefix,
            *self.ends,
            *(part for pair in pairs for part in pair),
        ]
        return sha256("\0".join(parts).encode()).hexdigest()

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Ids of the ends that are a single token, and for the model's own template those that its config names."""
        alone = [ids for end in self.ends if len(ids := self.tokenizer.encode(end)) == 1]
        settings = self.tokenizer.end_ids if self.kind in ("model", "plain") else ()
        return tuple(dict.fromkeys((*settings, *(ids[0] for ids in alone))))

    @cached_property
    def end_texts(self) -> tuple[str, ...]:
        """The ends that are several tokens."""
        return tuple(end for end in self.ends if len(self.tokenizer.encode(end)) > 1)

    @cached_property
    def answers(self) -> AnswerText:
        """White space in the loss is no part of an answer: before the answer, and between answer and end."""
        (whole, spans), (prompt, _) = self._probed, self._probe([Message("user", "?")], answer_next=True)
        before, _, behind = whole.partition(PROBE)
        in_loss = before[spans[0][0] :] if spans else before.removeprefix(prompt) if prompt else ""
        return AnswerText(
            self.tokenizer, self.end_texts, in_loss if in_loss.isspace() else "",
            behind[: len(behind) - len(behind.lstrip())], self.thinks, prompt.rstrip().endswith(OPEN),
        )  # fmt: skip

    @cached_property
    def _probed(self) -> tuple[str, list[Span]]:
        """A short conversation as the template writes it."""
        return self._probe([Message("user", "?"), Message("assistant", PROBE)])

    def _probe(self, messages: Sequence[Message], *, answer_next: bool = False) -> tuple[str, list[Span]]:
        """These messages without the prefix; empty if the template refuses them."""
        try:
            return self.render(messages, answer_next=answer_next).result(len(messages), answer_next)
        except TemplateError:  # rendering the real conversation reports the reason
            return "", []

    def text(self, messages: Sequence[Message], tools: Sequence[Any] = (), *, answer_next: bool = False) -> str:
        return self.render(messages, tools, answer_next=answer_next).text(len(messages), answer_next=answer_next)

    def _has_place(self, source: str) -> bool:
        """Whether the template writes a context itself. Otherwise it is written below the question."""
        if source not in self._placed:
            self._placed[source] = "context" in source  # used by the rendering below
            if self._placed[source]:
                try:
                    asked = [Message("user", "?", PROBE), Message("assistant", "!")]
                    self._placed[source] = PROBE in self.text(asked)
                except TemplateError:
                    self._placed[source] = False
        return self._placed[source]

    def render_all(self, conversations: Sequence[Conversation]) -> list[RenderedText]:
        """Conversations, each whole and up to each of its answers, all rendered together."""
        return self._render_all(conversations, _cuts)

    def _render_all(
        self, conversations: Sequence[Conversation], cuts: Callable[[Sequence[Message]], list[Cut]]
    ) -> list[RenderedText]:
        """Render conversations in their order, those with tools by the model's template for tool use if it has one."""
        written: dict[int, RenderedText] = {}
        for name in ("default", "tool_use"):
            own = {at: one for at, one in enumerate(conversations) if bool(one[1]) == (name == "tool_use")}
            source = self.sources.get(name) or self.sources["default"]
            shows_context = bool(own) and self._has_place(source)
            guarded = self.tokenizer.special.guarded
            asked = [plain_conversation(messages, tools, cuts(messages), guarded, shows_context=shows_context)
                     for messages, tools in own.values()]  # fmt: skip
            results = render_conversations(source, self._values, asked)
            for (at, (messages, _)), one, texts in zip(own.items(), asked, results, strict=True):
                written[at] = RenderedText(messages, self._prefix, dict(zip(one.cuts, texts, strict=True)))
        return [written[at] for at in range(len(conversations))]

    def render(
        self, messages: Sequence[Message], tools: Sequence[Any] = (), *, answer_next: bool = False
    ) -> RenderedText:
        (written,) = self._render_all([(messages, tools)], lambda _: [(len(messages), answer_next)])
        return written


def _cuts(messages: Sequence[Message]) -> list[Cut]:
    """The beginnings of a conversation that are rendered: the whole, each prompt, and the end of each answer."""
    answers, whole = answers_of(messages), len(messages)
    ends = [(at + 1, False) for at in answers if at + 1 < whole]
    return [(whole, False), *((at, True) for at in answers), *ends]


def answers_of(messages: Sequence[Message]) -> list[int]:
    """The numbers of the messages that are answers."""
    return [index for index, message in enumerate(messages) if message.role == "assistant"]
