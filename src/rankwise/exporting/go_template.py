"""A strict renderer of the part of Go's text/template that go_template_writer.py writes.

Ollama renders a Modelfile's TEMPLATE with Go's text/template. This renderer follows the same rules, so that an export
can be compared with training where Go is not installed. It knows text, trim markers, `if`, `else if`, `else`, `range`,
variables, fields, and the functions eq, ne, gt, not, and, or, len, index and json. Everything else is refused: it never
guesses. tests/exporting/test_go_templates.py compares it with Go itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rankwise.errors import TemplateError
from rankwise.exporting.go_json import GoMap, go_json

ACTION = re.compile(r"\{\{(- |)((?:\"(?:[^\"\\\n]|\\.)*\"|[^}\"]|\}(?!\}))*?)( -|)\}\}")
TOKEN = re.compile(r"\s+|(\"(?:[^\"\\\n]|\\.)*\"|:=|\$\w*(?:\.\w+)*|(?:\.\w+)+|\.|-?\d+|\w+|[(),=])")
SPACE = " \t\r\n"
"""What a trim marker removes."""


class GoTemplateError(TemplateError):
    """A Go template that is outside the known part, or fails on a conversation as it would in Go."""


@dataclass(frozen=True)
class Call:
    """A function with its arguments, or a single value as `value`."""

    function: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Path:
    """A field of the current value, of the root (`$`) or of a variable (`$name`)."""

    start: str
    fields: tuple[str, ...]


@dataclass
class Block:
    """One action with what it holds: its branches are pairs of a condition and a body."""

    kind: str
    expression: Any = None
    names: tuple[str, ...] = ()
    branches: list[tuple[Any, list[Any]]] = field(default_factory=list)


def parse(template: str) -> list[Any]:
    """The template as texts and blocks. Raises GoTemplateError for what is outside the known part."""
    root: list[Any] = []
    stack: list[tuple[Block | None, list[Any]]] = [(None, root)]
    for piece in _pieces(template):
        if isinstance(piece, str):
            stack[-1][1].append(piece)
            continue
        words = piece[0]
        if words[:1] == ["end"]:
            _need(len(stack) > 1 and len(words) == 1, "an end without a beginning")
            stack.pop()
        elif words[:1] == ["else"]:
            block = stack.pop()[0]
            if block is None or block.kind != "if":
                raise GoTemplateError("the Go template cannot be read: an else without an if.")
            condition = _expression(words[2:]) if words[1:2] == ["if"] else Call("value", (True,))
            _need(words[1:2] == ["if"] or len(words) == 1, "an else with more words")
            block.branches.append((condition, []))
            stack.append((block, block.branches[-1][1]))
        else:
            block = _block(words)
            stack[-1][1].append(block)
            if block.branches:
                stack.append((block, block.branches[-1][1]))
    _need(len(stack) == 1, "a block without its end")
    return root


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise GoTemplateError(f"the Go template cannot be read: {what}.")


def _pieces(template: str) -> Iterator[str | tuple[list[str]]]:
    position, trims = 0, False
    while (start := template.find("{{", position)) >= 0:
        match = ACTION.match(template, start)
        _need(match is not None, f"an action that does not end: {template[start : start + 40]!r}")
        assert match is not None
        text = template[position:start]
        text = text.lstrip(SPACE) if trims else text
        yield text.rstrip(SPACE) if match[1] else text
        yield (_words(match[2]),)
        position, trims = match.end(), bool(match[3])
    yield template[position:].lstrip(SPACE) if trims else template[position:]


def _words(body: str) -> list[str]:
    words, position = [], 0
    while position < len(body):
        match = TOKEN.match(body, position)
        _need(match is not None, f"{body!r}")
        assert match is not None
        if match[1]:
            words.append(match[1])
        position = match.end()
    return words


def _block(words: list[str]) -> Block:
    if words[:1] == ["if"]:
        return Block("if", branches=[(_expression(words[1:]), [])])
    if words[:1] == ["range"]:
        rest = words[1:]
        names: tuple[str, ...] = ()
        if ":=" in rest:
            split = rest.index(":=")
            names, rest = tuple(word for word in rest[:split] if word != ","), rest[split + 1 :]
        _need(len(names) in (0, 2) and all(name.startswith("$") for name in names), "a range of another form")
        return Block("range", _expression(rest), names, [(None, [])])
    if len(words) > 2 and words[1] in (":=", "="):
        return Block("declare" if words[1] == ":=" else "assign", _expression(words[2:]), (words[0],))
    return Block("show", _expression(words))


def _expression(words: list[str]) -> Any:
    parsed, rest = _call(words)
    _need(not rest, f"{' '.join(words)!r}")
    return parsed


def _call(words: list[str]) -> tuple[Any, list[str]]:
    _need(bool(words), "an empty action")
    if words[0] in FUNCTIONS:
        arguments, rest = [], words[1:]
        while rest and rest[0] != ")":
            argument, rest = _operand(rest)
            arguments.append(argument)
        return Call(words[0], tuple(arguments)), rest
    return _operand(words)


def _operand(words: list[str]) -> tuple[Any, list[str]]:
    word, rest = words[0], words[1:]
    if word == "(":
        inside, rest = _call(rest)
        _need(rest[:1] == [")"], "a parenthesis that does not close")
        rest = rest[1:]
        if rest and rest[0].startswith(".") and len(rest[0]) > 1:
            return Call("field", (inside, *rest[0][1:].split("."))), rest[1:]
        return inside, rest
    if word.startswith('"'):
        return Call("value", (json.loads(word),)), rest
    if re.fullmatch(r"-?\d+", word):
        return Call("value", (int(word),)), rest
    _need(word[0] in "$.", f"the word {word!r}")
    start, _, fields = word.partition(".")
    return Path(start, tuple(filter(None, fields.split(".")))), rest


def render(template: str, values: Mapping[str, Any]) -> str:
    """Render with the root `values`; dicts are structs, GoMap maps. GoTemplateError as Go reports an error."""
    return _Rendering(values).text(parse(template))


class _Rendering:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self.root = root
        self.scopes: list[dict[str, Any]] = [{}]

    def text(self, nodes: Sequence[Any]) -> str:
        self.scopes.append({})
        written: list[str] = []
        self._write(nodes, self.root, written)
        return "".join(written)

    def _write(self, nodes: Sequence[Any], dot: Any, written: list[str]) -> None:
        for node in nodes:
            if isinstance(node, str):
                written.append(node)
            elif node.kind == "show":
                value = self._value(node.expression, dot)
                _need(isinstance(value, str) or type(value) is int, f"a value of type {type(value).__name__} is shown")
                written.append(str(value))
            elif node.kind == "declare":
                self.scopes[-1][node.names[0]] = self._value(node.expression, dot)
            elif node.kind == "assign":
                self._scope(node.names[0])[node.names[0]] = self._value(node.expression, dot)
            elif node.kind == "range":
                self._range(node, dot, written)
            else:
                chosen = next((body for condition, body in node.branches if self._value(condition, dot)), [])
                self._inside(chosen, dot, written, {})

    def _range(self, node: Block, dot: Any, written: list[str]) -> None:
        several = self._value(node.expression, dot)
        _need(isinstance(several, list | GoMap) or several is None, "a range over something else than a list or map")
        pairs = sorted(several.items()) if isinstance(several, GoMap) else enumerate(several or ())
        for key, value in pairs:
            names = dict(zip(node.names, (key, value), strict=True)) if node.names else {}
            self._inside(node.branches[0][1], value, written, names)

    def _inside(self, nodes: Sequence[Any], dot: Any, written: list[str], names: dict[str, Any]) -> None:
        self.scopes.append(names)
        self._write(nodes, dot, written)
        self.scopes.pop()

    def _scope(self, name: str) -> dict[str, Any]:
        scope = next((scope for scope in reversed(self.scopes) if name in scope), None)
        _need(scope is not None, f"the variable {name} is not declared")
        assert scope is not None
        return scope

    def _value(self, expression: Any, dot: Any) -> Any:
        if isinstance(expression, Path):
            start = dot if not expression.start else self.root
            if len(expression.start) > 1:
                start = self._scope(expression.start)[expression.start]
            return _fields(start, expression.fields)
        if expression.function == "value":
            return expression.arguments[0]
        if expression.function == "field":
            inside, *fields = expression.arguments
            return _fields(self._value(inside, dot), fields)
        if expression.function in ("and", "or"):
            return self._first(expression, dot)
        return FUNCTIONS[expression.function](*(self._value(argument, dot) for argument in expression.arguments))

    def _first(self, expression: Call, dot: Any) -> Any:
        """`and` gives the first empty value, `or` the first other one; if there is none, the last."""
        value: Any = None
        for argument in expression.arguments:
            value = self._value(argument, dot)
            if bool(value) == (expression.function == "or"):
                break
        return value


def _fields(value: Any, fields: Sequence[str]) -> Any:
    for name in fields:
        if not isinstance(value, Mapping) or name not in value:
            raise GoTemplateError(f"can't evaluate field {name} in type {type(value).__name__}")
        value = value[name]
    return value


def _equal(first: Any, *others: Any) -> bool:
    _need(bool(others), "eq with one argument")
    _need(all(type(other) is type(first) for other in others), "eq of two types")
    return first in others


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": _equal,
    "ne": lambda first, second: not _equal(first, second),
    "gt": lambda first, second: first > second,
    "not": lambda value: not value,
    "len": len,
    "index": lambda several, number: several[number],
    "json": go_json,
    "and": lambda *values: values,
    "or": lambda *values: values,
}
