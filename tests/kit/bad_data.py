"""80 bad records and files, and what must become of each: the rows of this file, and the files of bad_files.py.

A row among good ones costs only itself, a damaged file is refused, and what merely looks bad is read like the good rows
alone. Rows that tests/rows/test_bad_records.py has already are not repeated here in the same form.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Content = bytes | Callable[[Path], object]
"""What a file holds, or what makes it."""


@dataclass(frozen=True)
class Case:
    """`said` are words of the reason, or of a remark where the rows are read."""

    name: str
    kind: str
    files: Mapping[str, Content]
    path: str
    """What is given as the data: one of the files, or the folder of all of them ("")."""
    end: Literal["dropped", "refused", "read"]
    where: str
    """The file with its line or row, if it has any."""
    said: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def conversation(*turns: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(turns), **more}


def call(name: Any = "c1", arguments: Any = "{}") -> dict[str, Any]:
    return {"id": name, "type": "function", "function": {"name": "find", "arguments": arguments}}


def called(calls: Any, *results: str) -> dict[str, Any]:
    """A conversation in which a tool is called; each result names the id of its call."""
    after = [{"role": "tool", "content": f"found {at}", "tool_call_id": one} for at, one in enumerate(results)]
    return conversation(user("where?"), answer("", tool_calls=calls), *after, answer("there"), tools=TOOLS)


TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
QUESTION = user("which?")
GOOD: dict[str, list[dict[str, Any]]] = {
    "text": [conversation(user(f"question {n}"), answer(f"answer {n}")) for n in range(4)],
    "pairs": [{"prompt": f"question {n}", "chosen": f"answer {n}", "rejected": f"no {n}"} for n in range(4)],
    "labels": [{"text": f"the film is {word}", "label": name}
               for word, name in (("kind", "good"), ("cold", "bad"), ("warm", "good"), ("cruel", "bad"))],
    "tags": [{"tokens": ["Anna", verb, "in", place], "tags": ["B-PER", "O", "O", "B-LOC"]}
             for verb, place in (("works", "Oslo"), ("lives", "Quito"), ("work", "Oslo"), ("lives", "Oslo"))],
    "spans": [{"text": f"{name} works", "spans": [{"start": 0, "end": len(name), "label": "PER"}]}
              for name in ("Anna", "Chen", "Boris Novak", "Oslo")],
}  # fmt: skip
"""Rows of each kind as they should be."""


def lines(*rows: Any) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def among(kind: str, bad: Any) -> list[Any]:
    """A bad row between good ones, the third of five."""
    return [*GOOD[kind][:2], bad, *GOOD[kind][2:]]


def row(name: str, kind: str, bad: Any, *said: str, **settings: Any) -> Case:
    """A bad line in a file of JSON lines."""
    return Case(name, kind, {"x.jsonl": lines(*among(kind, bad))}, "x.jsonl", "dropped", "x.jsonl:3", said, settings)


def pair(**changes: Any) -> dict[str, Any]:
    return {"prompt": "question", "chosen": "yes", "rejected": "no"} | changes


def sides(chosen: Sequence[Any], rejected: Sequence[Any]) -> dict[str, Any]:
    return {"chosen": [QUESTION, *chosen], "rejected": [QUESTION, *rejected]}


def span(**changes: Any) -> dict[str, Any]:
    return {"text": "\U0001f600 Anna", "spans": [{"start": 2, "end": 6, "label": "PER"} | changes]}


def cut(kind: str) -> bytes:
    """The first half of a good row."""
    whole = json.dumps(GOOD[kind][0]).encode()
    return whole[: len(whole) // 2]


def latin(kind: str) -> bytes:
    """A row whose last letter is of another encoding than UTF-8."""
    whole = json.dumps(GOOD[kind][3])
    at = max(at for at, sign in enumerate(whole) if sign.isalnum())
    return (whole[:at] + "\xe9" + whole[at + 1 :]).encode("latin-1")


def long_line(path: Path) -> None:
    path.write_bytes(lines(*among("text", b'{"messages": "' + b"x" * 50_000_000 + b'"}')))


HALF = "\ud83d"
CONVERSATIONS = [
    row("a conversation cut in the middle", "text", cut("text"), "is not JSON"),
    row("a conversation that is no UTF-8", "text", latin("text"), "not UTF-8", "byte"),
    row("a raw NUL in an answer", "text", b'{"messages": [{"role": "user", "content": "a\0"}]}', "is not JSON"),
    row("an escaped NUL in an answer", "text", conversation(QUESTION, answer("a\0")), "turn 2", "NUL character at 1"),
    Case("a line of 50 MB", "text", {"x.jsonl": long_line}, "x.jsonl", "dropped", "x.jsonl:3", ("16,000,000 bytes",)),
    row("no role", "text", conversation(QUESTION, {"content": "x"}), "turn 2", "a role and a content are expected"),
    row("an unknown role", "text", conversation(QUESTION, {"role": "robot", "content": "x"}), "turn 2", "'robot'"),
    row("null content", "text", conversation(user(None), answer("x")), "content of turn 1 is null"),
    row("no messages", "text", conversation(), "a list of turns"),
    row("a user with the last word", "text", conversation(QUESTION, answer("x"), user("y")), "last turn", "user"),
    row("an object of a key twice", "text", b'{"messages": [{"role": "user", "role": "user"}]}', "'role'", "twice"),
    row("calls of null", "text", called([None]), "turn 2 calls null"),
    row("arguments of a list", "text", called([call(arguments="[1]")], "c1"), "arguments of find in turn 2", "[1]"),
    row("arguments of a key twice", "text", called([call(arguments='{"a": 1, "a": 2}')], "c1"), "arguments of find"),
    row("arguments of half a character", "text", called([call(arguments={"a": HALF})], "c1"), "turn 2", "surrogate"),
    row("a number for a call's id", "text", called([call(1)], "1"), "id of a call in turn 2 is 1"),
    row("two calls of one id", "text", called([call(), call()], "c1"), "turn 2", "two calls with the id 'c1'"),
    row("two results of one call", "text", called([call()], "c1", "c1"), "turn 4", "'c1'", "waits for its result"),
    row("a result of no call", "text", called([call()], "c2"), "turn 3", "'c2'", "waits for its result"),
]  # fmt: skip
PAIRS = [
    row("a pair cut in the middle", "pairs", cut("pairs"), "is not JSON"),
    row("a pair that is no UTF-8", "pairs", latin("pairs"), "not UTF-8"),
    row("a NUL in the rejected answer", "pairs", pair(rejected="n\0"), "rejected", "NUL character at 1"),
    row("half a character in the chosen answer", "pairs", pair(chosen=HALF), "chosen", "surrogate"),
    row("the chosen answer twice", "pairs", b'{"prompt": "q", "chosen": "a", "chosen": "b"}', "'chosen'", "twice"),
    row("an unknown role in a pair", "pairs", sides([answer("x")], [{"role": "robot", "content": "y"}]), "'robot'"),
    row("null content in a pair", "pairs", sides([answer(None)], [answer("y")]), "content of turn 2 is null"),
    row("a rejected side that ends on a user", "pairs", sides([answer("x")], [answer("y"), user("z")]), "last turn"),
    row("answers without weight in a pair", "pairs", sides([answer("x", weight=0)], [answer("y")]), "weight 0"),
    row("wrong arguments in a pair", "pairs",
        {"prompt": [QUESTION], "chosen": [answer("", tool_calls=[call(arguments="7")])], "rejected": [answer("y")]},
        "arguments of find in turn 2"),
    row("a list of texts for an answer", "pairs", pair(chosen=["a", "b"]), "a text and the other a list of turns"),
    row("a prompt of a system message alone", "pairs", pair(prompt=[{"role": "system", "content": "s"}]),
        "without a question before it"),
]  # fmt: skip
LABELS = [
    row("a labelled row cut in the middle", "labels", cut("labels"), "is not JSON"),
    row("a labelled row that is no UTF-8", "labels", latin("labels"), "not UTF-8"),
    row("a label of null", "labels", {"text": "a film", "label": None}, "the label is null"),
    row("a label of NaN", "labels", b'{"text": "a film", "label": NaN}', "the label is nan"),
    row("a list among names", "labels", {"text": "a film", "label": ["good"]}, "['good']", "one name is expected"),
    row("a NUL in a label", "labels", {"text": "a film", "label": "g\0"}, "the label has a NUL character"),
    row("half a character in a label", "labels", {"text": "a film", "label": HALF}, "the label", "surrogate"),
    row("a row without a label", "labels", {"text": "a film"}, "its file is in the classification format"),
    row("a label without words", "labels", {"text": None, "label": "good"}, "the text is null"),
]  # fmt: skip
TAGS = [
    row("tagged words cut in the middle", "tags", cut("tags"), "is not JSON"),
    row("a NUL in a word", "tags", {"tokens": ["An\0na"], "tags": ["O"]}, "the token has a NUL character at 2"),
    row("half a character in a tag", "tags", {"tokens": ["Anna"], "tags": [f"B-{HALF}"]}, "tag 1 is 'B-\\ud83d'"),
    row("a NUL in a tag", "tags", {"tokens": ["Anna"], "tags": ["B-\0"]}, "tag 1 is 'B-\\x00'"),
    row("a tag of null", "tags", {"tokens": ["Anna"], "tags": [None]}, "tag 1 is null"),
    row("fewer tags than words", "tags", {"tokens": ["Anna", "works"], "tags": ["O"]}, "2 tokens and 1 tags"),
    row("a tag without a name", "tags", {"tokens": ["Anna"], "tags": [17]}, "tag 1 is 17", "data.labels"),
    row("half a character in a span's label", "spans", span(label=HALF), "label of span 1 is '\\ud83d'"),
    row("a span counted in bytes", "spans", span(start=5, end=9), "from 5 to 9, outside of the text of 6 characters"),
    row("a span of decimals", "spans", span(start=2.0), "whole numbers are expected"),
]  # fmt: skip
ROWS = [*CONVERSATIONS, *PAIRS, *LABELS, *TAGS]
