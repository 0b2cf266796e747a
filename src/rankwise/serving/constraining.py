"""What an answer is held to: what its request asks for, calls of its tools, or what its run was trained with.

Calls are a grammar of the texts that the template writes around them (calls.py), with the schemas of the arguments:

    required, by name     start: "<tool_call>" rest
    auto                  start: TEXT | opened rest         where a text has no <tool_call>, and `opened` ends with one
    auto, with a format   start: format | "<tool_call>" rest

    rest: '\\n{"name": ' call ('}\\n</tool_call>\\n<tool_call>\\n{"name": ' call)* '}\\n</tool_call>'
    call: '"weather", "arguments": ' %json {"type": "object", …} | …

What a request brings is tried in a process of its own (trial.py), then compiled in the thread that reads the request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from rankwise.config.base import JsonObject
from rankwise.config.data import Constraint
from rankwise.constraints.constraint import constraint_of
from rankwise.constraints.matcher import Matcher, json_options
from rankwise.constraints.schema import closed
from rankwise.errors import ConfigError, RankwiseError
from rankwise.inference.generate import matcher_of
from rankwise.rows.forms.turns import read_tools
from rankwise.rows.text.example import MOST_CALLS
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.serving.bodies import BadRequest, ChatBody, Generation, NamedTool
from rankwise.serving.calls import ID, CallForm
from rankwise.serving.served import Served, Serving
from rankwise.serving.trial import Request as TrialRequest

ANY = "/(?s:.*)/"


def constraint_in(body: Generation) -> Constraint | None:
    """What the request asks for. BadRequest where no answer can be held to it."""
    return next((_checked(kind, text, place) for place, (kind, text) in body.structures.items()), None)


def given_in(body: Generation) -> list[TrialRequest]:
    """The constraints that a request brings, the schemas of its tools included."""
    every: list[TrialRequest] = [(kind, text, place) for place, (kind, text) in body.structures.items()]
    if isinstance(body, ChatBody) and body.tools and body.tool_choice != "none":
        try:
            every += dict.fromkeys(_arguments(tool["function"], body) for tool in read_tools(body.tools, "tools"))
        except RankwiseError as error:
            raise BadRequest(str(error), parameter="tools") from None
    return every


@lru_cache(maxsize=16)
def _checked(kind: str, text: str, where: str) -> Constraint:
    try:
        return constraint_of(kind, text, where)
    except ConfigError as error:
        raise BadRequest(*error.problems, parameter=re.split(r"\W", where)[0]) from None


def matchers_for(serving: Serving, served: Served, constraint: Constraint | None, count: int) -> list[Matcher]:
    """One for each answer, compiled here; none where answers are free."""
    if constraint is None:
        return []
    try:
        every = [matcher_of(serving.model.with_template(served.template), constraint) for _ in range(count)]
    except RankwiseError as error:
        raise BadRequest(str(error)) from None
    if every[0].problem is not None:
        raise BadRequest(f"{every[0].problem}.")
    return every


def calls_constraint(
    body: ChatBody, tools: Sequence[JsonObject], form: CallForm | None, tokenizer: HubTokenizer
) -> Constraint | None:
    """What an answer that may or must call tools is held to; None where nothing is enforced."""
    constraint, functions = constraint_in(body), [tool["function"] for tool in tools]
    is_strict = any(one.get("strict") is True for one in functions)
    if body.tool_choice == "auto" and constraint is None and not is_strict and body.parallel_tool_calls:
        return None
    if form is None:
        problem = (
            'the chat template writes calls in a form that cannot be enforced; use none of "strict" and "tool_choice".'
        )
        raise BadRequest(problem, parameter="tools")
    if isinstance(body.tool_choice, NamedTool):
        functions = [one for one in functions if one["name"] == body.tool_choice.name]
        if not functions:
            problem = f'"tool_choice" names {body.tool_choice.name!r}, which is none of the tools.'
            raise BadRequest(problem, parameter="tool_choice")
    if constraint is not None and not form.opening.strip():
        problem = (
            "the chat template writes calls as plain JSON, which an answer of the form that is asked for could be too."
        )
        raise BadRequest(problem, parameter="tools")
    text = "\n".join([*_start(body, form, constraint, tokenizer), *_calls(body, functions, form, tokenizer)])
    return Constraint(kind="grammar", text=text)


def _start(body: ChatBody, form: CallForm, constraint: Constraint | None, tokenizer: HubTokenizer) -> list[str]:
    mark, whole = literal(form.mark, tokenizer), form.opening + form.head
    first = literal(whole[: len(whole) - len(whole.lstrip())] + form.mark, tokenizer)
    if body.tool_choice != "auto":
        return [f"start: {first} rest"]
    if constraint is not None:
        return [f"start: {_json(json.loads(constraint.text))} | {first} rest"]
    if tokenizer.special.unspelled_pattern.search(form.mark):  # no text holds such a token
        return [f"start: TEXT | TEXT? {mark} rest", f"TEXT: {ANY}"]
    before = ANY if form.opening.strip() else r"/\s*/"
    return ["start: TEXT | opened rest", f"opened[lazy]: {before} {mark}", f"TEXT: {ANY} & ~({before} {mark} {ANY})"]


def _calls(body: ChatBody, functions: Sequence[JsonObject], form: CallForm, tokenizer: HubTokenizer) -> list[str]:
    first = (form.opening + form.head).lstrip().removeprefix(form.mark)
    repeats = body.parallel_tool_calls and form.between is not None and not isinstance(body.tool_choice, NamedTool)
    between = literal(f"{form.tail}{form.between}{form.head}", tokenizer)
    more = f"({between} call){{0,{MOST_CALLS - 1}}}" if repeats else ""
    rest = f"rest: {literal(first, tokenizer)} call {more} {literal(form.tail + form.closing, tokenizer)}"
    schemas = [json.loads(_checked(*_arguments(one, body)[:3]).text) for one in functions]
    rules = [f"call{at}: {literal(json.dumps(one['name']) + form.middle, tokenizer)} {_json(schemas[at])}"
             for at, one in enumerate(functions)]  # fmt: skip
    return [rest, f"call: {' | '.join(f'call{at}' for at in range(len(functions)))}", *rules]


def _arguments(function: JsonObject, body: ChatBody) -> TrialRequest:
    """The schema of a function's arguments; any object where they are not to be enforced."""
    schema, place = function.get("parameters") or {}, f'tools: the parameters of "{function["name"]}"'
    if body.tool_choice == "auto" and function.get("strict") is not True:
        return "schema", '{"type": "object"}', "tools"
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise BadRequest(f"{place} are not the schema of an object.", parameter="tools")
    return "schema", json.dumps(schema | {"type": "object"} | ({} if schema else {"properties": {}})), place


def _json(schema: Any) -> str:
    return f"%json {json.dumps(closed(schema) | {'x-guidance': json_options()})}"


def literal(text: str, tokenizer: HubTokenizer) -> str:
    """A text in Lark's notation, with tokens that it cannot spell by their numbers, and any id in the place of ours."""
    if (token := tokenizer.special.unspelled_pattern.search(text)) is not None:
        before, behind = text[: token.start()], text[token.end() :]
        return f"{literal(before, tokenizer)} <[{tokenizer.special.unspelled[token[0]]}]> {literal(behind, tokenizer)}"
    return " /[a-zA-Z0-9]{9}/ ".join(json.dumps(part) for part in text.split(ID) if part)
