"""From a request to what the engine writes: prompts by the model's template, bounds, stops, samplers.

A conversation gets the system message that the adapter was trained with, unless it brings one, and its texts cannot
hold control tokens: they are read as plain text.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from rankwise.config.data import Constraint, column_text
from rankwise.constraints.matcher import Matcher
from rankwise.errors import DataError, RankwiseError, did_you_mean
from rankwise.inference.batch import GenerationRow
from rankwise.inference.decoding import Piece
from rankwise.inference.sampling import Sampler, Sampling
from rankwise.rows.asking import PLACEHOLDER
from rankwise.rows.forms.turns import NOT_SUPPORTED, read_tools, read_turns
from rankwise.rows.text.chat_template import WITH_TOOLS
from rankwise.rows.text.example import Message
from rankwise.rows.text.tokenize import prompt_ids
from rankwise.serving.bodies import CHOICES, BadRequest, ChatBody, CompletionBody, Generation
from rankwise.serving.calls import form_of
from rankwise.serving.constraining import calls_constraint, constraint_in, matchers_for
from rankwise.serving.engine import Pending
from rankwise.serving.served import Listed, Served, Serving

_Listed = TypeVar("_Listed", bound=Listed)
Send = Callable[[int, Piece], None]
"""The number of the choice, and what is new of it."""
OF_TURNS = ("role", "content", "name", "tool_calls", "tool_call_id", *NOT_SUPPORTED)
"""The fields of a turn that are read, and those that are refused with a reason of their own."""
_rendering = threading.Lock()
"""Templates are rendered in one process, one at a time."""


@dataclass(frozen=True)
class Question:
    """`prompts` has a prompt for each choice, or one for all."""

    served: Served
    prompts: list[list[int]]
    longest: int
    sampling: Sampling
    matchers: Sequence[Matcher]
    """What each choice is held to; none where choices are free."""
    tools: tuple[str, ...] = ()
    """The names of those that may be called."""
    schema: str | None = None
    """What complete answers are valid by."""

    def pending(self, body: Generation, send: Send, *, loops: bool = False) -> list[Pending]:
        """One for each choice, which ends where it repeats itself if it `loops`. Without a seed each request draws from
        its own."""
        seed = secrets.randbits(63) if body.seed is None else body.seed % 2**63
        every = list[Pending]()
        for number in range(len(self.prompts) * body.n):
            prompt = self.prompts[number // body.n]
            row = GenerationRow(
                prompt, self.served.adapter, Sampler.seeded(self.sampling, (seed + number % body.n) % 2**63)
            )
            if self.matchers:
                row.hold_to(self.matchers[number], self.longest)
            every.append(Pending(
                row, self.served.template, self.longest, body.stops, isinstance(body, ChatBody), loops,
                send=partial(send, number),
            ))  # fmt: skip
        return every


def served_by(models: Mapping[str, _Listed], name: str) -> _Listed:
    """BadRequest (404) where nothing has this name."""
    if (served := models.get(name)) is None:
        raise BadRequest(
            f'no model "{name[:80]}" is served here.{did_you_mean(name, models)} Known are: {", ".join(models)}.',
            status=404, parameter="model",
        )  # fmt: skip
    return served


def chat_question(serving: Serving, served: Served, body: ChatBody, most: int) -> Question:
    try:
        messages = _put(_messages(body), served)
        tools = read_tools(body.tools, "tools") if body.tool_choice != "none" else ()
        if served.system and messages[0].role != "system":
            messages = [Message("system", served.system), *messages]
        with _rendering:
            text = served.template.text(messages, tools, answer_next=True)
            if tools and text == served.template.text(messages, answer_next=True):
                raise BadRequest(
                    f'the chat template of "{served.name}" writes no tools. {WITH_TOOLS}', parameter="tools"
                )
            form = form_of(served.template) if tools else None
        ids = prompt_ids(text, serving.model.tokenizer)
    except RankwiseError as error:
        raise BadRequest(str(error), parameter="messages") from None
    if tools:
        constraint = calls_constraint(body, tools, form, serving.model.tokenizer)
    else:
        constraint = constraint_in(body)
        if constraint is None and served.constraint is not None and not serving.unconstrained:
            constraint, body = served.constraint, body.model_copy(update={"temperature": body.temperature or 0.0})
    names = tuple(str(tool["function"]["name"]) for tool in tools)
    longest = _longest(serving, body, [ids], body.longest, most)
    sampling = _sampling(serving, body, likely=body.top_logprobs or 0, listed=body.logprobs)
    matchers = matchers_for(serving, served, constraint, body.n)
    return Question(served, [ids], longest, sampling, matchers, tools=names, schema=_schema_in(constraint))


def completion_question(serving: Serving, served: Served, body: CompletionBody, most: int) -> Question:
    tokenizer = serving.model.tokenizer
    if len(body.prompts) * body.n > CHOICES:
        raise BadRequest(f"{len(body.prompts)} prompts with n={body.n} are more than {CHOICES} choices.", parameter="n")
    prompts = [prompt_ids(f"{tokenizer.start}{text}", tokenizer) for text in body.prompts]
    if not all(prompts):
        raise BadRequest("a prompt has no token; give a text.", parameter="prompt")
    constraint = constraint_in(body)
    longest = _longest(serving, body, prompts, body.max_tokens, most)
    sampling = _sampling(serving, body, likely=body.logprobs or 0, listed=body.logprobs is not None)
    matchers = matchers_for(serving, served, constraint, len(prompts) * body.n)
    return Question(served, prompts, longest, sampling, matchers, schema=_schema_in(constraint))


def _schema_in(constraint: Constraint | None) -> str | None:
    return constraint.text if constraint is not None and constraint.kind == "schema" else None


def _longest(
    serving: Serving, body: Generation, prompts: Sequence[Sequence[int]], longest: int | None, most: int
) -> int:
    """Without a length an answer may have as many tokens as the context has left, and `most` at most."""
    context, widest = serving.model.context_length, max(map(len, prompts))
    room = most if context is None else context - widest
    if room < (longest or 1):
        raise BadRequest(
            f"the prompt has {widest:,} tokens; with {longest or 1:,} more it does not fit into the model's context of "
            f"{context or 0:,}.",
            parameter="messages" if isinstance(body, ChatBody) else "prompt",
        )
    return longest or min(room, most)


def _sampling(serving: Serving, body: Generation, *, likely: int, listed: bool) -> Sampling:
    bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
    if bias and max(bias) >= serving.model.vocabulary:
        raise BadRequest(
            f"logit_bias names token {max(bias)}, and the model has {serving.model.vocabulary:,} tokens.",
            parameter="logit_bias",
        )
    temperature = 1.0 if body.temperature is None else body.temperature
    return Sampling(
        temperature, body.top_p, body.presence_penalty, body.frequency_penalty, bias, likely=likely, listed=listed
    )


def _messages(body: ChatBody) -> list[Message]:
    """As rows of training are read; the last turn is answered. Here a text may be empty, as an answer may have been."""
    turns = [_with_text(turn, number) for number, turn in enumerate(body.messages, start=1)]
    if turns[-1].get("role") == "assistant":
        raise DataError("messages: the last one is an answer; the last one must be what is to be answered.")
    if all(turn.get("role") in ("system", "developer") for turn in turns):
        raise DataError("messages: there is no question; a turn with the role user is expected.")
    empty = [turn.get("content") == "" and turn.get("role") in ("user", "assistant") for turn in turns]
    filled = [turn | {"content": PLACEHOLDER} if one else turn for turn, one in zip(turns, empty, strict=True)]
    answer = {"role": "assistant", "content": PLACEHOLDER}
    messages = read_turns([*filled, answer], "messages", "messages")[:-1]
    return [replace(message, content="") if one else message for message, one in zip(messages, empty, strict=True)]


def _put(messages: list[Message], served: Served) -> list[Message]:
    """A single question, put into the run's prompt if this names one column. One that begins and ends as the prompt
    does was put into it already."""
    parts = column_text(served.prompt).parts
    texts = [one if isinstance(one, str) else "" for one in parts]
    *before, asked = messages
    is_put = asked.content.startswith(texts[0]) and asked.content.endswith(texts[-1]) if texts else True
    if is_put or len(column_text(served.prompt).columns) != 1 or any(one.role != "system" for one in before):
        return messages
    text = "".join(one if isinstance(one, str) else asked.content for one in parts)
    return [*before, replace(asked, content=text)]


def _with_text(turn: dict[str, Any], number: int) -> dict[str, Any]:
    """A content in parts as one text, without the fields that are null, as clients write those that they do not give.
    An image or a sound is refused, and so is a field without effect."""
    turn = {key: value for key, value in turn.items() if value is not None or key == "content"}
    if unknown := [key for key in turn if key not in OF_TURNS]:
        raise DataError(f"messages: turn {number} has {unknown[0][:40]!r}, which has no effect here. Leave it out.")
    content = turn.get("content")
    if not isinstance(content, list):
        return turn
    return turn | {"content": "".join(_text_of(part, number) for part in content)}


def _text_of(part: object, number: int) -> str:
    unknown = [key for key in part if key not in ("type", "text")] if isinstance(part, dict) else []
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(text, str):
        raise DataError(
            f"messages: turn {number} has a part of type {str(kind)[:40]!r}; this server reads texts alone."
        )
    if unknown:
        raise DataError(f"messages: turn {number} has a part with {unknown[0][:40]!r}, which has no effect here.")
    return text


def tokens_of(prompts: Sequence[Sequence[int]]) -> int:
    return sum(map(len, prompts))
