"""Conversations as a chat template writes them, in a process of its own with limits (template_renderer.py).

One process renders all conversations of this one, many at a time, because a request takes longer than a short
conversation. It is started when the first template is rendered, again after a template was stopped, and ends with this
one. A template that exceeds a limit on a short conversation is never rendered again: it says nothing about a row. On a
long conversation the row is refused.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import RLock
from typing import Any, Literal

from rankwise.errors import ModelError, ResourceError, TemplateError
from rankwise.rows.text import template_renderer
from rankwise.rows.text.example import Message, ToolCall
from rankwise.rows.text.template_renderer import MEMORY, OUTPUT, OUTPUT_FOR_EACH, SECONDS

Rules = Literal["transformers", "llama.cpp"]
Cut = tuple[int, bool]
"""How many of the first messages, and whether an answer comes next."""
Result = tuple[str, list[tuple[int, int]]] | TemplateError
"""The text of a cut with its {% generation %} marks, or why there is none."""
Guard = Callable[[str], str]
"""Breaks up the control tokens in a text."""
BATCH_CONVERSATIONS, BATCH_CHARACTERS = 250, 2_000_000
LONGEST_SOURCE = 1_000_000
SHORT = 20_000
"""Characters of a conversation up to which a template that exceeds a limit is at fault, and not the conversation."""
UNLIMITED = "RANKWISE_UNLIMITED_TEMPLATES"
"""Set to 1, templates are rendered in this process. For systems on which no other can be started."""
IMPORTED = ("jinja2", "markupsafe")
EXCEEDED = {
    "time": f"takes more than {SECONDS:g} second of processor time",
    "memory": f"takes more than {MEMORY // 1_000_000} MB of memory",
    "output": f"writes more than {OUTPUT:,} characters (and {OUTPUT_FOR_EACH} for each that it is given)",
    "crash": "makes the process that renders it crash",
}


@lru_cache(8)
def names(source: str) -> frozenset[str]:
    """All names in a template: variables, fields, filters and functions."""
    from jinja2 import Environment

    return frozenset(value for _, kind, value in Environment().lex(source) if kind == "name")


@dataclass(frozen=True)
class Conversation:
    """Messages and tools as a template gets them, and the parts of it that are to be rendered."""

    messages: Sequence[dict[str, Any]]
    tools: Sequence[dict[str, Any]] | None
    cuts: Sequence[Cut]


def plain_conversation(
    messages: Sequence[Message], tools: Sequence[Any], cuts: Sequence[Cut], guarded: Guard, *, shows_context: bool
) -> Conversation:
    """`shows_context`: whether the template writes the context of a question itself; else it is put below."""
    turns = [_turn(message, guarded, shows_context) for message in messages]
    return Conversation(turns, [_guarded(tool, guarded) for tool in tools] or None, cuts)


def _turn(message: Message, guarded: Guard, shows_context: bool) -> dict[str, Any]:
    turn: dict[str, Any] = {
        "role": message.role,
        "content": guarded(message.content if shows_context else message.text),
    }
    if shows_context and message.context:
        turn["context"] = guarded(message.context)
    if message.tool_calls:
        turn["tool_calls"] = [_call(call, guarded) for call in message.tool_calls]
    if message.name is not None:
        turn["name"] = guarded(message.name)
    if message.call_id is not None:
        turn["tool_call_id"] = guarded(message.call_id)
    return turn


def _call(call: ToolCall, guarded: Guard) -> dict[str, Any]:
    function = {"name": guarded(call.name), "arguments": _guarded(call.arguments, guarded)}
    return {"type": "function", "function": function} | ({"id": guarded(call.call_id)} if call.call_id else {})


def _guarded(value: Any, guarded: Guard) -> Any:
    if isinstance(value, str):
        return guarded(value)
    if isinstance(value, dict):
        return {guarded(key): _guarded(inside, guarded) for key, inside in value.items()}
    return [_guarded(inside, guarded) for inside in value] if isinstance(value, list) else value


def characters(value: Any) -> int:
    """Characters of all texts in a JSON value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(characters, value.values()))
    return sum(map(characters, value)) if isinstance(value, list | tuple) else 1


def render_conversations(
    source: str, values: Mapping[str, Any], conversations: Sequence[Conversation], rules: Rules = "transformers"
) -> list[list[Result]]:
    """The text of every cut of every conversation. `values` are what the template is given by name.

    Raises ModelError for a template that exceeds a limit, and ResourceError where no process can be started.
    """
    if len(source) > LONGEST_SOURCE:
        raise ModelError(f"the chat template has {len(source):,} characters; at most {LONGEST_SOURCE:,} are read.")
    shared = {"source": source, "rules": rules, "values": dict(values)}
    results: list[list[Result]] = []
    for batch in _batches(conversations):
        results += _PROCESS.rendered(shared, batch)
    return results


def _batches(conversations: Sequence[Conversation]) -> Iterator[list[tuple[Conversation, int]]]:
    batch: list[tuple[Conversation, int]] = []
    total = 0
    for conversation in conversations:
        size = characters([*conversation.messages]) + characters(conversation.tools)
        if batch and (len(batch) == BATCH_CONVERSATIONS or total + size > BATCH_CHARACTERS):
            yield batch
            batch, total = [], 0
        batch.append((conversation, size))
        total += size
    if batch:
        yield batch


class TemplateProcess:
    """A process that renders, restarted where it was lost. A fork of this process has one of its own."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = RLock()
        self._refused: dict[str, str] = {}

    def rendered(self, shared: dict[str, Any], batch: Sequence[tuple[Conversation, int]]) -> list[list[Result]]:
        source, results = shared["source"], list[list[Result]]()
        with self._lock:
            while len(results) < len(batch):  # more than once only after a conversation that exceeded a limit
                if source in self._refused:
                    raise ModelError(self._refused[source])
                rest = batch[len(results) :]
                for (conversation, size), reply in zip(rest, self._replies(shared, rest), strict=False):
                    own, exceeded = _results(reply, conversation)
                    results.append(own)
                    if exceeded is not None and size <= SHORT:
                        self._refused[source] = (
                            f"the chat template is not used, because it {EXCEEDED[exceeded]} for a conversation of "
                            f"{size:,} characters. Repair it in the model's folder, or choose a recipe (data.recipe) "
                            "or another model."
                        )
                        raise ModelError(self._refused[source])
        return results

    def _replies(self, shared: dict[str, Any], batch: Sequence[tuple[Conversation, int]]) -> list[list[Any]]:
        """A reply for each conversation, up to the first that exceeds a limit."""
        conversations = [
            {"messages": one.messages, "tools": one.tools, "size": size, "cuts": one.cuts} for one, size in batch
        ]
        if os.environ.get(UNLIMITED) == "1":
            return [[*template_renderer.rendered(shared, one, lambda _: None)] for one in conversations]
        request = json.dumps(shared | {"conversations": conversations}, ensure_ascii=False)
        process = self._started()
        try:
            replies = exchanged(process, request.encode("utf-8", "surrogatepass"), len(batch))
        except BaseException:  # what is left in the pipe would be taken for the next reply
            self.close()
            raise
        if len(replies) < len(batch):
            self.close()
        return replies

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        folders = {
            str(Path(spec.origin).parent.parent): None
            for name in IMPORTED
            if (spec := find_spec(name)) is not None and spec.origin is not None
        }
        command = [sys.executable, "-S", "-E", "-P", template_renderer.__file__, *folders]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                start_new_session=True, creationflags=0x200 * (sys.platform == "win32"),  # Ctrl-C is for this process
            )  # fmt: skip
        except OSError as error:
            raise ResourceError(
                f"chat templates are rendered in a process of their own, which cannot be started ({error.strerror}). "
                f"With the environment variable {UNLIMITED}=1 they are rendered without limits in this one."
            ) from None
        self._owner = os.getpid()
        return self._process

    def close(self) -> None:
        """End the process. It is started again when it is needed."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()


_PROCESS = TemplateProcess()
atexit.register(_PROCESS.close)


def exchanged(process: subprocess.Popen[bytes], request: bytes, count: int) -> list[list[Any]]:
    """A reply of a process with limits for each part of a request, the last why it ended before it had replied."""
    assert process.stdin is not None and process.stdout is not None
    with suppress(BrokenPipeError):  # a process that has ended gives no reply
        process.stdin.write(request + b"\n")
        process.stdin.flush()
    replies: list[list[Any]] = []
    while len(replies) < count:
        line = process.stdout.readline()
        if not line.endswith(b"\n"):
            return [*replies, [{"exceeded": _cause(process.wait())}]]
        replies.append(json.loads(line.decode("utf-8", "surrogatepass")))
    return replies


def _results(reply: list[Any], conversation: Conversation) -> tuple[list[Result], str | None]:
    """The results of all cuts, and the limit that was exceeded."""
    results: list[Result] = []
    exceeded: str | None = None
    whole = ""
    for result in reply:
        if isinstance(result, int):
            results.append((whole[:result], []))
        elif isinstance(result, list):
            text, spans = result
            whole = whole or text
            results.append((text, [(start, stop) for start, stop in spans]))
        elif "refused" in result:
            results.append(TemplateError(result["refused"]))
        else:
            exceeded = result["exceeded"]
    if exceeded is not None:
        missing = len(conversation.cuts) - len(results)
        results += [TemplateError(f"it {EXCEEDED[exceeded]}")] * missing
    return results, exceeded


def _cause(code: int) -> str:
    """What ended a process that rendered."""
    if code == -template_renderer.TIME_SIGNAL:
        return "time"
    return "memory" if code == template_renderer.NO_MEMORY else "crash"
