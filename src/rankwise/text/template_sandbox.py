"""Jinja's sandbox with a budget: somebody else's template ends soon, and fills no memory.

The sandbox of Jinja keeps a template away from files and from Python's inner parts, and lets it run for ever. Here all
that a template does is paid for, before it is done where it could be large:

    a turn of a loop, a call of a macro     the nodes of its body, counted by a statement that is put before it
    a filter, a test, a method, an operator the characters and the elements that it reads and writes
    what is written                         its characters

An element counts as ELEMENT characters. A value is walked as often as it is reached, so a list of a list twice, twice
and so on, is as large as the text it would become. Only the calls that are named here may be made.

The rules are those of transformers (5.20 to 5.24) and of llama-cpp-python (0.3.36): what a template may call, and how
white space and JSON are written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, ItemsView, Iterator, KeysView, Sized, ValuesView
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial, wraps
from typing import Any, Literal, NoReturn

from jinja2 import nodes, pass_context, pass_eval_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.runtime import BlockReference, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

Rules = Literal["transformers", "llama.cpp"]
ELEMENT, TURN, NODE, CALL = 16, 64, 8, 200
"""What an element costs, a turn and each node of its body, and a call, in characters."""
LARGEST_NUMBER = 4096
"""Bits."""


class ExceededError(Exception):
    """The budget is spent."""


class Budget:
    """What is left; one rendering at a time spends it."""

    left = 0


def spend(units: int) -> bool:
    Budget.left -= abs(units)
    if Budget.left < 0:
        raise ExceededError
    return True


def weigh(*values: Any) -> int:
    """Spend what values hold, all the way down, and return how much it was."""
    before = Budget.left
    for value in values:
        spend(ELEMENT + len(value) if isinstance(value, str) else ELEMENT)
        if isinstance(value, dict):
            spend(CALL)
            weigh(*value.keys(), *value.values())
        elif isinstance(value, list | tuple | KeysView | ValuesView | ItemsView):
            spend(CALL)
            weigh(*value)
    return before - Budget.left


def paid(value: Any) -> Any:
    weigh(value)
    return value


PASSES_OVER = (
    "abs", "attr", "count", "d", "default", "first", "float", "int", "items", "last", "length", "list", "map",
    "reject", "rejectattr", "reverse", "round", "select", "selectattr",
)  # fmt: skip
"""Filters that look at the elements of a value alone."""
READS = (
    "capitalize", "e", "escape", "forceescape", "lower", "safe", "string", "title", "trim", "upper", "urlencode",
    "wordcount", "truncate", "center", "batch", "slice",
)  # fmt: skip
"""Filters that read a value all the way down; they write as much, or as much as the numbers they are given say."""
ORDERS = ("dictsort", "groupby", "max", "min", "sort", "unique")
"""Filters that compare the elements of a value with each other."""
COMPARES = (
    "!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "ge", "greaterthan", "gt", "in", "le", "lessthan", "lt",
    "ne",
)  # fmt: skip
COMPARISONS = 20
"""How often an element is compared, at most, where elements are ordered."""
METHODS = {
    str: (
        "capitalize", "casefold", "center", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii",
        "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "ljust", "lower",
        "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust", "rpartition",
        "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper", "zfill",
    ),
    dict: ("get", "items", "keys", "values"),
    list: ("count", "index"),
    tuple: ("count", "index"),
}  # fmt: skip
WIDE = {"%": re.compile(r"%[-#0 +]*\d*\.?(\*|\d{4})"), "{": re.compile(r"\{[^{}]*(\d{4}|\{)")}
"""In the format of a text: a width of four digits, or one that a value decides."""


def _filter(function: Callable[..., Any], cost: Callable[..., int]) -> Callable[..., Any]:
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def bounded(*given: Any, **named: Any) -> Any:
        cost(*given[first:], *named.values())
        return _counted(function(*given, **named))

    return bounded


def _whole(value: Any) -> Any:
    """Pay for what can be looked at without going down."""
    spend(ELEMENT if not isinstance(value, Sized) else len(value) if isinstance(value, str) else ELEMENT * len(value))
    return value


def _counted(result: Any) -> Any:
    """What a filter or a method returns, of which nothing comes later."""
    if isinstance(result, Iterator):
        return [one for one in result if spend(ELEMENT)]
    return _whole(result)


def _each(value: Any, *rest: Any) -> int:
    _whole(value)
    return weigh(*rest)


def _all(*values: Any) -> int:
    return weigh(*values) + sum(spend(number) for number in values[1:] if isinstance(number, int))


def _ordered(*values: Any) -> int:
    return spend(COMPARISONS * weigh(*values))


def _grown(text: str, old: Any, new: Any, *rest: Any) -> int:
    return spend(text.count(str(old)) * len(str(new)))


@pass_eval_context
def _replace(context: Any, value: Any, old: Any, new: Any, count: int | None = None) -> Any:
    _grown(str(paid(value)), old, new)
    return FILTERS["replace"](context, value, old, new, count)


@pass_eval_context
def _join(context: Any, value: Any, d: Any = "", attribute: Any = None) -> Any:
    spend(len(str(paid(d))) * len(value := list(paid(value))))
    return FILTERS["join"](context, value, d, attribute)


def _indent(s: Any, width: Any = 4, first: bool = False, blank: bool = False) -> Any:
    spend((str(paid(s)).count("\n") + 1) * (width if isinstance(width, int) else len(str(width))))
    return FILTERS["indent"](s, width, first, blank)


def _json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    between = weigh(indent, separators) + (indent if isinstance(indent, int) else 0)
    spend(weigh(value) * (1 + between // 64))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _formatted(text: str, sign: str, *values: Any) -> None:
    """Pay for a text with values put in, each as often as there is a place."""
    if WIDE[sign].search(text):
        raise SecurityError("a template may not format with a width of more than three digits")
    spend(weigh(text, *values) * (1 + text.count(sign)))


@dataclass(frozen=True)
class Formatting:
    """The method format of a text."""

    text: str
    put_in: Callable[..., str]

    def __call__(self, *given: Any, **named: Any) -> str:
        _formatted(self.text, "{", given, named)
        return self.put_in(*given, **named)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(local: bool, form: str) -> str:
    now = datetime.now()
    spend(16 * weigh(form))
    return (now.astimezone() if local else now).strftime(form)


class OpenNamespace(Namespace):
    """Jinja's, without names that begin like Python's inner ones, and without a text that shows what it holds."""

    def __init__(self, /, *given: Any, **named: Any) -> None:  # a value may be called self
        super().__init__()
        for name, value in dict(*given, **named).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a template may not set the name {name!r} in a namespace")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


class Marks(Extension):
    """{% generation %} … {% endgeneration %}: the text of an answer."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        text = caller()
        self.environment.marked(text)  # type: ignore[attr-defined]
        return text


class Paying(NodeTransformer):
    """Puts what pays into a template. The names of its filters cannot be written in one."""

    def _turn(self, node: Any) -> Any:
        cost = TURN + NODE * sum(1 for one in node.body for _ in one.find_all(nodes.Node))
        return nodes.Filter(nodes.Const(cost), "$turn", [], [], None, None, lineno=node.lineno)

    def _counted_body(self, node: Any) -> Any:
        turn = self._turn(node)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(turn, lineno=node.lineno))
        return node

    visit_Macro = visit_CallBlock = visit_Block = _counted_body

    def visit_For(self, node: Any) -> Any:
        if node.test is not None:
            node.test = nodes.And(self._turn(node), node.test, lineno=node.lineno)
        return self._counted_body(node)

    def _paid(self, node: Any) -> Any:
        if isinstance(node, nodes.Const):
            return node
        return nodes.Filter(node, "$paid", [], [], None, None, lineno=node.lineno)

    def visit_Compare(self, node: Any) -> Any:
        self.generic_visit(node)
        node.expr = self._paid(node.expr)
        return node

    visit_Operand = visit_Compare

    def visit_Concat(self, node: Any) -> Any:
        self.generic_visit(node)
        node.nodes = [self._paid(one) for one in node.nodes]
        return node

    def visit_Getitem(self, node: Any) -> Any:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = nodes.Filter(node.node, "$whole", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Pair(self, node: Any) -> Any:
        self.generic_visit(node)
        node.key = self._paid(node.key)
        return node

    def visit_TemplateData(self, node: Any) -> Any:
        return nodes.Const(node.data, lineno=node.lineno)  # so that it is paid for as what is computed


@pass_context
def _written(context: Any, value: Any) -> Any:
    return paid(value)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's, in which all is paid for."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))
    marked: Callable[[str], None]

    def __init__(self, as_json: Callable[..., str], extensions: list[Any], **names: Any) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[*extensions, loopcontrols], finalize=_written,
            optimized=False,
        )  # fmt: skip
        by_cost = ((PASSES_OVER, _each), (READS, _all), (ORDERS, _ordered))
        self.filters = {name: _filter(FILTERS[name], cost) for names, cost in by_cost for name in names}
        self.filters |= {"replace": _replace, "join": _join, "indent": _indent}
        self.filters |= {"tojson": as_json, "$turn": spend, "$paid": paid, "$whole": _whole}
        self.tests |= {name: _filter(self.tests[name], _all) for name in COMPARES}
        self.globals = {
            "range": self.globals["range"], "cycler": Cycler, "joiner": Joiner, "dict": dict,
            "namespace": OpenNamespace, "raise_exception": _refuse, **names,
        }  # fmt: skip
        self._callable = (*self.globals.values(), dict.fromkeys)

    def _generate(self, source: nodes.Template, *given: Any, **named: Any) -> str:
        paying = Paying().visit(source)
        paying.set_environment(self)
        return super()._generate(paying, *given, **named)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if not isinstance(argument, str | int):
            weigh(argument)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        put_in = super().wrap_str_format(value)
        return None if put_in is None else Formatting(value.__self__, put_in)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _formatted(left, "%", right)
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            spend(0 if bits <= LARGEST_NUMBER else Budget.left + 1)
        elif operator == "*":
            many, few = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(few, int) and isinstance(many, Sized):
                spend(len(many) * max(few, 0) * (1 if isinstance(many, str) else ELEMENT))
        elif operator == "+":
            _whole(left)
            _whole(right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, called: Any, /, *given: Any, **named: Any) -> Any:
        spend(CALL)
        owner = getattr(called, "__self__", None)
        kind = next((kind for kind in METHODS if isinstance(owner, kind)), None)
        if kind is not None:
            self._pay_for_method(kind, owner, called.__name__, given, named)
            return _counted(super().call(context, called, *given, **named))
        parts = (Macro, BlockReference, LoopContext, Joiner, Formatting, Undefined)
        if not isinstance(called, parts) and callable(called):
            weigh(given, named)
            if called not in self._callable and not isinstance(owner, LoopContext | Cycler | Extension):
                raise SecurityError(f"a template may not call {getattr(called, '__name__', 'this')}")
        return super().call(context, called, *given, **named)

    def _pay_for_method(self, kind: type, owner: Any, name: str, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        if name not in METHODS[kind]:
            raise SecurityError(f"a template may not call the method {name} of a {kind.__name__}")
        if kind is str:
            spend(len(owner))
            _all("", *given, *named.values())
            if name == "replace":
                _grown(owner, *given)
            elif name == "join" and given and isinstance(given[0], Sized):
                spend(len(owner) * len(given[0]))
        elif name in ("index", "count"):
            weigh(owner, given)
        else:
            weigh(given)


@lru_cache(8)
def compiled(source: str, rules: Rules) -> Any:
    """A template that renders by the rules of one of both libraries."""
    if rules == "llama.cpp":
        as_json = partial(_json, ensure_ascii=False)
        return Sandbox(as_json, [], strftime_now=partial(_now, True)).from_string(source)
    return Sandbox(_json, [Marks], strftime_now=partial(_now, False)).from_string(source)
