"""Render chat templates in a process of its own, with limits on time, memory and output. Run as a script.

A chat template is a program from somebody else's model. Jinja's sandbox keeps it away from files and from Python's
inner parts, and lets it run for hours and fill the memory. So rows/text/template_process.py starts this file as a
process and sends it conversations; whatever a template does, this process alone is lost.

    request  {"source": Jinja, "rules": "transformers" or "llama.cpp", "values": {name: value},
              "conversations": [{"messages": [...], "tools": [...] or null, "size": characters,
                                 "cuts": [[messages, answer next], ...]}, ...]}
    reply    for each conversation a line [result, ...], of each cut the text of its first messages:
              [text, [[start, stop], ...]] with its {% generation %} marks; the number of characters, where it has none
              and is a beginning of the first cut's text; {"refused": reason}, if the template raises an error; or
              {"exceeded": "memory" or "output"}, after which the conversation's further cuts are left out

Both are JSON, one line each. Limits: SECONDS of processor time for a cut, MEMORY bytes of addresses, and OUTPUT
characters with OUTPUT_FOR_EACH more for each of the conversation's. A system that can limit neither time nor memory,
such as Windows, limits the output alone.

The rules are those of transformers (5.20 to 5.24) and of llama-cpp-python (0.3.36): what a template may call, and how
white space and JSON are written. Nothing but Jinja and the standard library is imported.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache, partial
from typing import Any, NoReturn

SECONDS = 1.0
SECONDS_FOR_EACH = 1e-6
"""Besides, for each character of the conversation."""
MEMORY = 512_000_000
OUTPUT, OUTPUT_FOR_EACH = 50_000, 8
"""The first is for what a template says by itself: system messages of its own, and how tools are called."""
LONGEST_REASON = 300
TIME_SIGNAL = 27
"""SIGPROF."""
NO_MEMORY = 3
"""Exit code of a process that has no memory left for a request or a reply."""


def main() -> None:
    """Answer requests until the input ends, which it does with the parent."""
    sys.path += sys.argv[1:]
    for rules in RULES:  # the imports do not count as rendering
        compiled("", rules)
    limit_memory()
    replies = sys.stdout.buffer
    for line in sys.stdin.buffer:
        limit_time(len(line))  # reading a request counts as rendering
        request = json.loads(line.decode("utf-8", "surrogatepass"))
        for conversation in request["conversations"]:
            text = json.dumps([*rendered(request, conversation, limit_time)], ensure_ascii=False, separators=(",", ":"))
            replies.write(text.encode("utf-8", "surrogatepass") + b"\n")
            replies.flush()  # a later conversation may end this process


def limit_memory() -> None:
    with suppress(ImportError, ValueError, OSError):  # Windows, and systems that know no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_time(characters: int) -> None:
    """End this process after so much more work, wherever it is then. While it waits it does none."""
    with suppress(AttributeError):  # Windows
        signal.setitimer(signal.ITIMER_PROF, SECONDS + SECONDS_FOR_EACH * characters)


def rendered(request: dict[str, Any], conversation: dict[str, Any], limit: Callable[[int], None]) -> Iterator[Any]:
    """The results of one conversation. `limit` is called with its size before each of them."""
    size, whole = conversation["size"], None
    for count, answer_next in conversation["cuts"]:
        limit(size)
        try:
            text, spans = _cut(request, conversation, count, answer_next, OUTPUT + OUTPUT_FOR_EACH * size)
        except (MemoryError, OutputError) as error:
            yield {"exceeded": "memory" if isinstance(error, MemoryError) else "output"}
            return
        except Exception as error:  # a template can raise any error
            yield {"refused": (str(error) or type(error).__name__)[:LONGEST_REASON]}
            continue
        if whole is None:
            whole = text
            yield [text, spans]
        else:
            yield [text, spans] if spans or not whole.startswith(text) else len(text)


class OutputError(Exception):
    """Raised for a text that is longer than any template makes of such a conversation."""


def _cut(
    request: dict[str, Any], conversation: dict[str, Any], count: int, answer_next: bool, longest: int
) -> tuple[str, list[tuple[int, int]]]:
    given = (request["source"], request["rules"], request["values"], conversation["tools"], answer_next)
    messages = conversation["messages"][:count]
    try:
        return render(*given, messages, longest)
    except TypeError:  # some templates expect the arguments of a call as a text
        return render(*given, [_with_text_arguments(message) for message in messages], longest)


def _with_text_arguments(message: dict[str, Any]) -> dict[str, Any]:
    calls = [
        call | {"function": call["function"] | {"arguments": _json(call["function"]["arguments"], ensure_ascii=False)}}
        for call in message.get("tool_calls") or []
    ]
    return message | {"tool_calls": calls} if calls else message


def render(
    source: str, rules: str, values: dict[str, Any], tools: Any, answer_next: bool, messages: Sequence[Any],
    longest: int,
) -> tuple[str, list[tuple[int, int]]]:  # fmt: skip
    """The text of a conversation, and where its {% generation %} marks begin and end."""
    pieces: list[str] = []
    spans: list[tuple[int, int]] = []
    length = 0
    template = compiled(source, rules)
    if rules == "transformers":
        template.environment.marked = lambda text: spans.append((length, length + len(text)))
        values = values | {"documents": None}
    for piece in template.generate(messages=messages, tools=tools, add_generation_prompt=answer_next, **values):
        pieces.append(piece)
        length += len(piece)
        if length > longest:
            raise OutputError
    return "".join(pieces), spans


@lru_cache(8)
def compiled(source: str, rules: str) -> Any:
    """A template that renders by the rules of one of both libraries."""
    return RULES[rules]().from_string(source)


def _as_in_llama_cpp() -> Any:
    from jinja2 import BaseLoader
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        loader=BaseLoader(), trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.globals |= {
        "raise_exception": _refuse, "strftime_now": lambda form: datetime.now().astimezone().strftime(form)
    }  # fmt: skip
    return environment


def _as_in_transformers() -> Any:
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

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

    class OpenNamespace(Namespace):
        """Jinja's, without names that begin like Python's inner ones."""

        def __init__(self, /, *arguments: Any, **named: Any) -> None:  # a value may be called self
            values = dict(*arguments, **named)
            for name in values:
                _refuse_hidden(name)
            super().__init__(values)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_hidden(name)
            super().__setitem__(name, value)

    class Dict:
        """`dict`, of which a template needs two calls alone."""

        def __call__(self, *values: Any, **named: Any) -> dict[Any, Any]:
            return dict(*values, **named)

        def fromkeys(self, *values: Any) -> dict[Any, Any]:
            return dict.fromkeys(*values)

    def _refuse_hidden(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a template may not set the name {name!r} in a namespace")

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Marks, loopcontrols])
    environment.filters["tojson"] = _json
    environment.globals |= {
        "raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": Dict(), "namespace": OpenNamespace,
    }  # fmt: skip
    return environment


def _json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)


RULES = {"transformers": _as_in_transformers, "llama.cpp": _as_in_llama_cpp}

if __name__ == "__main__":
    try:
        main()
    except MemoryError:
        os._exit(NO_MEMORY)
