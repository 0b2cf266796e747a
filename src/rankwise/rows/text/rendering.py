"""Render a conversation, and cut it into segments that are in the loss or not. rows/text/tokenize.py comes next.

The joined segments are exactly what the chat template renders. Each answer with the end token after it is in the loss,
and nothing else. The position of an answer is determined in this order:

1. by the template's {% generation %} marks, if each of them contains its answer and ends with an end token;
2. by rendering the conversation up to the answer, if the whole conversation begins with this text;
3. if it does not, and the template is known to rewrite earlier turns: by one sequence for each answer, with the turns
   before it rendered as they will be at inference.

Otherwise the row is refused. It is refused too where the template leaves out a part of the conversation, or marks a
question as an answer. The rendered text alone does not show this, because an answer can repeat other parts. So a
conversation with the same shape is rendered in which each part is a unique word, once for each shape, and these words
are looked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from rankwise.errors import TemplateError
from rankwise.rows.text.chat_template import WITH_TOOLS, ChatTemplate, RenderedText, ShownContent, Span, answers_of
from rankwise.rows.text.example import CLOSE, OPEN, Example, Message, parted
from rankwise.rows.text.tokenize import Rendering, Segment

SEPARATELY = (
    " Use --set data.answers=apart, which makes a row of each answer, or split the conversation into rows with one "
    "answer each."
)
TOOLS = "the model its tools"
"""What a template may leave out of a conversation."""

REWRITING = ("last_query_index", ".split('</think>')", '.split("</think>")')
"""Parts of the templates of Qwen3, QwQ, DeepSeek-R1 and models made from them. These templates remove the thoughts from
all answers but the last, or write an empty thought before it."""


class UnstableTemplate(TemplateError):
    """Raised if the rendered conversation does not begin with the rendering up to an answer."""


def renderings(
    example: Example, template: ChatTemplate, *, separately: bool = False, rendered: RenderedText | None = None
) -> list[Rendering]:
    """Render the conversation as one sequence, or with `separately` as one sequence for each answer. `rendered` is what
    the template wrote of it, if that was asked for before."""
    answers = answers_of(example.messages)
    rendered = rendered or _rendered(example, template)
    if not separately or len(answers) < 2:
        try:
            return [render(example, template, rendered)]
        except UnstableTemplate:
            if not _has(template, REWRITING) or len(answers) < 2:
                raise
    learned = [index for index in answers if example.messages[index].learned]
    return [render(_up_to(example, index), template, rendered.first(index + 1)) for index in learned]


def _rendered(example: Example, template: ChatTemplate) -> RenderedText:
    (written,) = template.render_all([(example.messages, example.tools)])
    return written


def _up_to(example: Example, answer: int) -> Example:
    """The conversation up to this answer, with only this answer in the loss."""
    given = tuple(replace(message, learned=False) for message in example.messages[:answer])
    return replace(example, messages=(*given, example.messages[answer]))


def render(example: Example, template: ChatTemplate, rendered: RenderedText | None = None) -> Rendering:
    try:
        if example.text is not None:
            return _whole_text(example.text, template)
        rendered = rendered or _rendered(example, template)
        spans = rendered.spans
        usable = spans and template.reasoning == "none" and shown_of(example, template).marks_fit
        by_marks = _by_marks(example, template, rendered, merged(spans)) if usable else None
        rendering = by_marks or _by_prefix(example, template, rendered)
        refuse_unshown(example, template, rendered.full_text)
        return rendering
    except TemplateError as error:
        raise type(error)(f"{example.where}: {error}{_hint(example, template)}") from None


def _hint(example: Example, template: ChatTemplate) -> str:
    """What helps where a template drops or rewrites the reasoning in an answer."""
    if template.reasoning != "none" or not any(
        message.role == "assistant" and CLOSE in message.content for message in example.messages
    ):
        return ""
    return " An answer has reasoning: set data.reasoning to learn or mask."


def _whole_text(text: str, template: ChatTemplate) -> Rendering:
    if not template.ends:
        raise TemplateError("the model names no end token, so it would not learn where a text ends.")
    learned = Segment(template.tokenizer.special.guarded(text) + template.ends[0], True)
    return Rendering((Segment(template.start, False), learned) if template.start else (learned,), "text")


def _by_marks(
    example: Example, template: ChatTemplate, rendered: RenderedText, spans: Sequence[Span]
) -> Rendering | None:
    """Cut at the marks. None if the marks do not fit the answers, contain other text, or leave out an end token.

    An answer that consists only of a tool call must begin exactly where the prompt ends.
    """
    answers = [(index, message) for index, message in enumerate(example.messages) if message.role == "assistant"]
    if len(spans) != len(answers):
        return None
    found: list[Span] = []
    whole, as_asked = rendered.full_text, True
    for (index, message), (start, stop) in zip(answers, spans, strict=True):
        length = _ended_length(whole[start:stop], message, template)
        asked = rendered.text(index, answer_next=True) == whole[:start]
        if length is None or not (asked or message.content.strip()):
            return None
        if message.learned:
            found.append((start, start + length))
            as_asked = as_asked and asked
    return Rendering(_cut(whole, found), "marks", as_asked)


def _ended_length(marked: str, message: Message, template: ChatTemplate) -> int | None:
    """Length of the marked text up to its end token; None if it has no end token or the answer is not before it."""
    try:
        return _learned_length(marked, message, template)
    except TemplateError:
        return None


def _by_prefix(example: Example, template: ChatTemplate, rendered: RenderedText) -> Rendering:
    found: list[Span] = []
    whole, position = rendered.full_text, 0
    for index, message in enumerate(example.messages):
        if message.role != "assistant" or not message.learned:
            continue
        before, after = rendered.text(index, answer_next=True), rendered.text(index + 1)
        stable = after.startswith(before) and whole.startswith(before) and len(before) >= position
        start, end = _learned_span(after[len(before) :], message, template) if stable else (0, 0)
        start, end = start + len(before), end + len(before)
        if not stable or not whole.startswith(after[:end]):
            several = [message.role for message in example.messages].count("assistant") > 1
            raise UnstableTemplate(
                f"the model's chat template writes turn {index + 1} differently inside the whole conversation than up "
                "to that turn, so the answer cannot be separated from the prompt."
                + (SEPARATELY if several else " Its generation prompt does not match the way it writes answers.")
            )
        found.append((start, end))
        position = end
    return Rendering(_cut(whole, found), "prefix")


def _cut(text: str, learned: Sequence[Span]) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    position = 0
    for start, end in learned:
        segments += [Segment(text[position:start], False), Segment(text[start:end], True)]
        position = end
    return tuple(segment for segment in (*segments, Segment(text[position:], False)) if segment.text)


def _learned_span(rendered: str, message: Message, template: ChatTemplate) -> Span:
    """Where the loss begins and ends in the rendered turn. A thought that the template writes before an answer is
    treated as reasoning too, empty or not."""
    thought, answer = parted(message.content) if template.reasoning != "none" else (None, message.content)
    before, close, behind = rendered.partition(CLOSE)
    writes = template.reasoning != "none" and close and (thought is not None or before.strip().startswith(OPEN))
    if not writes and thought is None:
        return 0, _learned_length(rendered, message, template)
    written = before.strip().removeprefix(OPEN).strip()
    if not writes or written != template.tokenizer.special.guarded(thought or "").strip():
        raise TemplateError(
            f"the chat template does not write the reasoning {(thought or '')[:40]!r} of the answer as it is, but "
            f"{rendered[:60]!r}, so it can be neither learned nor masked."
        )
    begin = len(before) + len(close)
    end = begin + _learned_length(behind, replace(message, content=answer), template)
    return (0 if template.reasoning == "learn" else begin + len(behind) - len(behind.lstrip())), end


def _learned_length(rendered: str, message: Message, template: ChatTemplate) -> int:
    """Length of the answer and its end token in the rendered turn."""
    answer = template.tokenizer.special.guarded(message.content).strip()
    start = rendered.find(answer)
    if start < 0 or (answer and rendered[:start].strip()):
        raise TemplateError(f"the chat template changes the answer {answer[:40]!r}: it writes {rendered[:60]!r}.")
    tail_start = start + len(answer)
    tail = rendered[tail_start:]
    ends = [(tail.find(end), -len(end), end) for end in template.ends if end and end in tail]
    if not ends:
        raise TemplateError(
            "the chat template puts no end token after the answer "
            f"(looked for {', '.join(map(repr, template.ends))} in {tail[:40]!r}). "
            "Trained like this, the model would not learn to stop."
        )
    place, _, end = min(ends)
    if message.tool_calls:
        _check_calls(message, tail[:place], template)
    elif tail[:place].strip():
        raise TemplateError(f"the chat template adds {tail[:place].strip()[:40]!r} to the answer before its end token.")
    return tail_start + place + len(end)


def _check_calls(message: Message, rendered: str, template: ChatTemplate) -> None:
    if not _has(template, ["tool_calls"]):
        raise TemplateError(f"the chat template writes no tool calls, so they cannot be trained on. {WITH_TOOLS}")
    for call in message.tool_calls:
        texts = [template.tokenizer.special.guarded(text) for text in (call.name, *_leaves(call.arguments))]
        missing = next((text for text in texts if not _stands(text, rendered)), None)
        if missing is not None:
            raise TemplateError(
                f"the chat template does not write the call of {call.name!r} ({missing!r} is not in {rendered[:60]!r}),"
                " so it cannot be trained on."
            )


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inside in value.items():
            yield str(key)
            yield from _leaves(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _leaves(inside)
    elif isinstance(value, str):
        yield value


def _has(template: ChatTemplate, signs: Sequence[str]) -> bool:
    """Whether a sign is in the Jinja text."""
    return any(sign in source for source in template.sources.values() for sign in signs)


def _controls(template: ChatTemplate, text: str) -> int:
    return len(template.tokenizer.special.pattern.findall(text))


def _stands(text: str, rendered: str) -> bool:
    """Whether the text occurs in the written one, unchanged or as JSON writes it."""
    return any(form in rendered for form in (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]))


def shown_of(example: Example, template: ChatTemplate) -> ShownContent:
    key = (tuple(map(_shape, example.messages)), tuple(_name(tool) for tool in example.tools))
    if key not in template.shapes:
        template.shapes[key] = _look(_probe(example), template)
    return template.shapes[key]


def refuse_unshown(example: Example, template: ChatTemplate, text: str) -> None:
    shown = shown_of(example, template)
    if shown.missing:
        instead = f" {WITH_TOOLS}" if shown.missing[0] == TOOLS else ""
        raise TemplateError(
            f"the chat template does not show {shown.missing[0]}, so the model would not know it.{instead}"
        )
    if _controls(template, text) > shown.controls:
        raise TemplateError(
            "the chat template turns text of the row into a control token: it removes something from the text, and the "
            "rest is read as a control token."
        )


def merged(spans: Sequence[Span]) -> list[Span]:
    """Join marks that touch, and drop empty ones."""
    joined: list[Span] = []
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def _shape(message: Message) -> tuple[Any, ...]:
    calls = tuple((call.name, call.call_id) for call in message.tool_calls)
    return message.role, bool(message.content.strip()), bool(message.context.strip()), calls, message.call_id


def _name(tool: dict[str, Any]) -> str:
    return str(tool["function"]["name"])


def _word(part: str, number: int) -> str:
    return f"{part}-like-no-other-{number}."


def _probe(example: Example) -> Example:
    messages = tuple(
        replace(
            message,
            content=_word(message.role, number) if message.content.strip() else "",
            context=_word("context", number) if message.context.strip() else "",
        )
        for number, message in enumerate(example.messages, start=1)
    )
    tools = tuple(
        tool | {"function": tool["function"] | {"name": _word("tool", number)}}
        for number, tool in enumerate(example.tools, start=1)
    )
    return replace(example, messages=messages, tools=tools)


def _look(probe: Example, template: ChatTemplate) -> ShownContent:
    written = template.render(probe.messages, probe.tools)
    whole, spans = written.full_text, written.spans
    missing = [TOOLS] if any(_name(tool) not in whole for tool in probe.tools) else []
    for number, message in enumerate(probe.messages, start=1):
        if message.role != "assistant" and not (message.content in whole and message.context in whole):
            missing.append(_called(message, number))
    answers = [message.content for message in probe.messages if message.role == "assistant"]
    marks = merged(spans)
    hold = len(marks) == len(answers) and all(
        whole[start:stop].lstrip().startswith(answer) for (start, stop), answer in zip(marks, answers, strict=True)
    )
    return ShownContent(tuple(missing), hold, _controls(template, whole))


def _called(message: Message, number: int) -> str:
    called = {"system": "the system message", "tool": "the tool's result in"}.get(message.role, "the text of")
    return called if message.role == "system" else f"{called} turn {number}"
