"""Bad rows and bad files: each is told with its file and line, stops a training, and is never trained on in silence.

With --on-bad-row skip the bad row is counted and listed and its neighbours are kept, as if it were not there. What is
told is an error of ours: no damage ends in a traceback. What is bad in a row is told in these tables alone.
"""

from __future__ import annotations

import copy
import io
import json
import lzma
import os
import pickle
import struct
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit.command import rankwise
from kit.sampling import draws
from rankwise.config.data import DataConfig
from rankwise.errors import DataError, RankwiseError
from rankwise.rows import preparing
from rankwise.rows.preparing import prepare
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.rows.writing import TextWriting
from rankwise.runs.records import silent

WITH_TOOLS = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Rows as they should be: of each form one, that takes a number so that no two say the same.

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
FORMS = {
    "prompt": lambda n: {"prompt": f"question {n}", "completion": f"answer {n}"},
    "messages": lambda n: {
        "messages": [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": f"answer {n}"}]
    },
    "sharegpt": lambda n: {
        "conversations": [{"from": "human", "value": f"question {n}"}, {"from": "gpt", "value": f"answer {n}"}]
    },
    "alpaca": lambda n: {"instruction": f"question {n}", "input": f"about {n}", "output": f"answer {n}"},
    "dolly": lambda n: {"instruction": f"question {n}", "context": f"about {n}", "response": f"answer {n}"},
    "text": lambda n: {"text": f"a text of number {n}"},
    "classification": lambda n: {"text": f"a text of number {n}", "label": n % 2},
    "self-instruct": lambda n: {
        "instruction": f"question {n}",
        "instances": [{"input": f"about {n}", "output": f"one {n}"}, {"input": "", "output": f"two {n}"}],
    },
    "oasst-trees": lambda n: {
        "prompt": {
            "role": "prompter",
            "text": f"question {n}",
            "replies": [{"role": "assistant", "text": f"answer {n}", "rank": 0, "replies": []}],
        }
    },
}  # fmt: skip


def good(form, count=4):
    return [FORMS[form](number) for number in range(count)]


def line(row):
    return row if isinstance(row, bytes) else json.dumps(row).encode()


def lines(*rows):
    return b"".join(line(row) + b"\n" for row in rows)


def turns(*messages, **more):
    return {"messages": [{"role": role, "content": content} for role, content in messages], **more}


def chat(*messages, **more):
    return {"messages": list(messages), **more}


def call(arguments, name="find", **more):
    """A whole conversation with a tool; only the call may be bad."""
    calls = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
    asked = {"role": "assistant", "content": "", "tool_calls": calls, **more}
    return chat(USER, asked, {"role": "tool", "content": "found"}, ANSWER)


def calls(tool_calls, role="assistant"):
    return chat(USER, {"role": role, "content": "x", "tool_calls": tool_calls}, ANSWER)


def called(tool_calls, *results):
    """A conversation in which a tool is called; each result names the id of its call."""
    after = [{"role": "tool", "content": "found", "tool_call_id": one} for one in results]
    return chat(USER, {"role": "assistant", "content": "", "tool_calls": tool_calls}, *after, ANSWER)


def call_of(call_id, arguments="{}"):
    return {"id": call_id, "type": "function", "function": {"name": "find", "arguments": arguments}}


def heard(*pairs):
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in pairs]}


def task(**changes):
    return FORMS["alpaca"](9) | changes


def label(value):
    return {"text": "a text", "label": value}


def tree(**changes):
    return {"prompt": FORMS["oasst-trees"](9)["prompt"] | changes}


@dataclass(frozen=True)
class Bad:
    """A bad row among good ones of a form; `said` are words of the reason."""

    name: str
    form: str
    row: object
    said: tuple[str, ...]
    settings: dict = field(default_factory=dict)
    stops: bool = True
    """False where it is left out and counted without being asked to."""


LABELS = {"labels": ("no", "yes")}
DEEP = 100_000
ROWS = [
    # no row at all
    Bad("a line cut in the middle", "prompt", b'{"prompt": "half', ("is not JSON",)),
    Bad("a line cut after a value", "prompt", b'{"prompt": "half"', ("is not JSON",)),
    Bad("bytes that are no UTF-8", "prompt", b'{"prompt": "\xff", "completion": "b"}', ("not UTF-8", "byte 12")),
    Bad("Latin-1", "prompt", '{"prompt": "café", "completion": "b"}'.encode("latin-1"), ("not UTF-8",)),
    Bad("half a character in UTF-8", "prompt", b'{"prompt": "\xed\xa0\x80", "completion": "b"}', ("not UTF-8",)),
    Bad("a byte order mark inside", "prompt", b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}', ("is not JSON",)),
    Bad("a raw NUL", "prompt", b'{"prompt": "a\0", "completion": "b"}', ("is not JSON",)),
    Bad("a line of NULs", "prompt", b"\0" * 50, ("is not JSON",)),
    Bad("two rows on one line", "prompt", lines(*good("prompt", 2)).replace(b"\n", b" "), ("is not JSON", "column")),
    Bad("single quotes", "prompt", b"{'prompt': 'a', 'completion': 'b'}", ("is not JSON",)),
    Bad("a comma too many", "prompt", b'{"prompt": "a", "completion": "b",}', ("is not JSON",)),
    Bad("a comma behind the row", "prompt", b'{"prompt": "a", "completion": "b"},', ("is not JSON",)),
    Bad("a comment", "prompt", b"# more rows below", ("is not JSON",)),
    Bad("a list", "prompt", b'["a", "b"]', ("holds a list",)),
    Bad("a number", "prompt", b"17", ("holds a int",)),
    Bad("a null", "prompt", b"null", ("holds a NoneType",)),
    Bad("a string", "prompt", b'"a: b"', ("holds a str",)),
    Bad("a truth", "prompt", b"true", ("holds a bool",)),
    Bad("lists nested deep", "prompt", b'{"prompt": ' + b"[" * DEEP + b"]" * DEEP + b"}", ("nested too deeply",)),
    Bad("objects nested deep", "prompt", b'{"prompt": ' + b'{"a":' * DEEP, ("nested too deeply",)),
    Bad("deep beside what is read", "prompt", b'{"prompt": "a", "completion": "b", "x": ' + b"[" * DEEP, ("deeply",)),
    Bad("a number of 10,000 digits", "prompt", b'{"prompt": "a", "completion": ' + b"9" * 10_000 + b"}", ("too long",)),
    Bad("a key twice", "prompt", b'{"prompt": "a", "prompt": "b", "completion": "c"}', ("'prompt'", "twice")),
    Bad("a key twice in a turn", "messages", b'{"messages": [{"role": "user", "role": "user"}]}', ("'role'", "twice")),
    Bad("no keys", "prompt", {}, ("no 'prompt' and no 'completion'",)),
    # texts
    Bad("no answer", "prompt", {"prompt": "a"}, ("no 'completion'",)),
    Bad("a misspelt answer", "prompt", {"prompt": "a", "completon": "b"}, ("no 'completion'", '"completon"')),
    Bad("a misspelt question", "prompt", {"promt": "a", "completion": "b"}, ("no 'prompt'", '"promt"')),
    Bad("keys in capitals", "prompt", {"Prompt": "a", "Completion": "b"}, ("no 'prompt'",)),
    Bad("a null answer", "prompt", {"prompt": "a", "completion": None}, ("completion is null",)),
    Bad("a null question", "prompt", {"prompt": None, "completion": "b"}, ("prompt is null",)),
    Bad("a number for an answer", "prompt", {"prompt": "a", "completion": 7}, ("completion is 7",)),
    Bad("NaN for an answer", "prompt", b'{"prompt": "a", "completion": NaN}', ("completion is nan",)),
    Bad("an object for an answer", "prompt", {"prompt": "a", "completion": {}}, ("completion is {}",)),
    Bad("an empty list for an answer", "prompt", {"prompt": "a", "completion": []}, ("a list without any text",)),
    Bad("an empty answer", "prompt", {"prompt": "a", "completion": ""}, ("completion is empty",)),
    Bad("an answer of white space", "prompt", {"prompt": "a", "completion": " \n\t\u3000"}, ("completion is empty",)),
    Bad("an empty question", "prompt", {"prompt": "", "completion": "b"}, ("prompt is empty",)),
    Bad("an escaped NUL", "prompt", {"prompt": "a\0", "completion": "b"}, ("NUL character at 1",)),
    Bad("half a character", "prompt", {"prompt": "a", "completion": "ab\ud83d"}, ("lone surrogate", "at 2")),
    Bad("U+FDD0", "prompt", {"prompt": "a", "completion": "ab\ufdd0"}, ("U+FDD0 at 2",)),
    Bad("a number for a system message", "prompt", {**FORMS["prompt"](9), "system": 7}, ("system is 7",)),
    Bad("zero for a system message", "prompt", {**FORMS["prompt"](9), "system": 0}, ("system is 0",)),
    Bad("a number for a system prompt", "prompt", {**FORMS["prompt"](9), "system_prompt": 7}, ("prompt is 7",)),
    Bad("two system messages for a row", "prompt", {**FORMS["prompt"](9), "system": "a", "system_prompt": "b"},
        ("'a'", "'b'", "leave out one")),
    Bad("a number beside a question", "prompt", {**FORMS["prompt"](9), "input": 7}, ("input is 7",)),
    Bad("a list beside a question", "prompt", {**FORMS["prompt"](9), "context": ["x"]}, ("context is ['x']",)),
    Bad("tools for a plain question", "prompt", {**FORMS["prompt"](9), "tools": [{"name": "f"}]}, ("'tools'",)),
    Bad("a text that is a number", "text", {"text": 7}, ("text is 7",)),
    Bad("an empty text", "text", {"text": "\n"}, ("text is empty",)),
    Bad("a text with a NUL", "text", {"text": "a\0"}, ("NUL",)),
    # turns
    Bad("no role", "messages", chat({"content": "x"}, ANSWER), ("turn 1", "a role and a content")),
    Bad("an unknown role", "messages", turns(("robot", "x"), ("assistant", "y")), ("turn 1", "'robot'")),
    Bad("a misspelt role", "messages", turns(("user", "x"), ("asistant", "y")), ("turn 2", '"assistant"')),
    Bad("a null role", "messages", turns((None, "x"), ("assistant", "y")), ("turn 1", "null")),
    Bad("a list for a role", "messages", turns((["user"], "x"), ("assistant", "y")), ("turn 1", "['user']")),
    Bad("no content", "messages", chat({"role": "user"}, ANSWER), ("turn 1", "a role and a content")),
    Bad("null content of a question", "messages", turns(("user", None), ("assistant", "y")), ("turn 1 is null",)),
    Bad("null content of an answer", "messages", turns(("user", "x"), ("assistant", None)), ("turn 2 is null",)),
    Bad("a number for content", "messages", turns(("user", 7), ("assistant", "y")), ("turn 1 is 7",)),
    Bad("an object for content", "messages", turns(("user", {"text": "x"}), ("assistant", "y")), ("turn 1",)),
    Bad("an empty question in a turn", "messages", turns(("user", ""), ("assistant", "y")), ("turn 1 is empty",)),
    Bad("a list of texts for content", "messages", turns(("user", ["a"]), ("assistant", "y")), ("turn 1 is ['a']",)),
    Bad("an empty answer in a turn", "messages", turns(("user", "x"), ("assistant", "")), ("turn 2 is empty",)),
    Bad("a white answer in a turn", "messages", turns(("user", "x"), ("assistant", "\n ")), ("turn 2 is empty",)),
    Bad("half a character in a turn", "messages", turns(("user", "\udc00"), ("assistant", "y")), ("turn 1",)),
    Bad("a NUL in a system message", "messages", turns(("system", "\0"), ("user", "x"), ("assistant", "y")), ("NUL",)),
    Bad(
        "an image in a question", "messages",
        turns(("user", [{"type": "image_url", "image_url": {"url": "file:///x.png"}}]), ("assistant", "y")),
        ("turn 1",),
    ),
    Bad(
        "a text part without text", "messages",
        turns(("user", [{"type": "text", "text": None}]), ("assistant", "y")), ("turn 1",),
    ),
    Bad("images beside turns", "messages", turns(("user", "x"), ("assistant", "y"), images=["x.png"]), ("'images'",)),
    Bad("no turns", "messages", chat(), ("[]", "a list of turns")),
    Bad("an object for turns", "messages", {"messages": {"role": "user"}}, ("a list of turns",)),
    Bad("a number for turns", "messages", {"messages": 7}, ("7", "a list of turns")),
    Bad("null for turns", "messages", {"messages": None}, ("null", "a list of turns")),
    Bad("broken JSON for turns", "messages", {"messages": '[{"role": "user"'}, ("not JSON",)),
    Bad("JSON for turns, nested deep", "messages", {"messages": "[" * DEEP}, ("not JSON",)),
    Bad("a string for a turn", "messages", chat("hi", ANSWER), ("turn 1 is 'hi'",)),
    Bad("null for a turn", "messages", chat(USER, None), ("turn 2 is null",)),
    Bad("a last turn that asks", "messages", chat(USER, ANSWER, USER), ("last turn has the role user",)),
    Bad("a last turn of a tool", "messages", call({}) | chat(*call({})["messages"][:3]), ("last turn", "tool")),
    Bad("a system message inside", "messages", turns(("user", "x"), ("system", "s"), ("assistant", "y")), ("turn 2",)),
    Bad("two system messages", "messages", turns(("system", "a"), ("system", "b"), ("user", "x"), ("assistant", "y")),
        ("turn 2 has the role system",)),
    Bad("only a system message", "messages", turns(("system", "be brief")), ("no answer to train on",)),
    Bad("only a question", "messages", turns(("user", "x")), ("no answer to train on",)),
    Bad("an answer without a question", "messages", chat(ANSWER), ("without a question before it",)),
    Bad("an answer to a system message", "messages", turns(("system", "s"), ("assistant", "y")), ("question before",)),
    Bad("weight 2", "messages", chat(USER, {**ANSWER, "weight": 2}), ("weight 2",)),
    Bad("weight a half", "messages", chat(USER, {**ANSWER, "weight": 0.5}), ("weight 0.5",)),
    Bad('weight "1"', "messages", chat(USER, {**ANSWER, "weight": "1"}), ("weight '1'",)),
    Bad("weight true", "messages", chat(USER, {**ANSWER, "weight": True}), ("weight true",)),
    Bad("weight of a list", "messages", chat(USER, {**ANSWER, "weight": [1]}), ("weight [1]",)),
    Bad("every weight 0", "messages", chat(USER, {**ANSWER, "weight": 0}), ("nothing to train on",)),
    Bad("a thought", "messages", chat(USER, {**ANSWER, "reasoning_content": "hm"}), ("'reasoning_content'",)),
    Bad("a refusal", "messages", chat(USER, {**ANSWER, "refusal": "no"}), ("'refusal'",)),
    # tools
    Bad("arguments of a list", "messages", call([1]), ("arguments of find in turn 2", "[1]")),
    Bad("arguments of a number", "messages", call(7), ("arguments of find in turn 2", "7")),
    Bad("null arguments", "messages", call(None), ("arguments of find in turn 2", "null")),
    Bad("arguments of broken JSON", "messages", call('{"city": '), ("arguments of find in turn 2", "not JSON")),
    Bad("arguments of a list as text", "messages", call("[1]"), ("arguments of find in turn 2",)),
    Bad("half a character in an argument", "messages", call({"city": "\ud800"}), ("turn 2",)),
    Bad("half a character in escaped arguments", "messages", call('{"city": "\\ud800"}'), ("turn 2",)),
    Bad("half a character in an argument's name", "messages", call({"\ud800": "x"}), ("turn 2",)),
    Bad("half a character in a tool's name", "messages", call({}, name="find\ud800"), ("turn 2",)),
    Bad("a NUL in an argument", "messages", call({"city": "a\0"}), ("turn 2", "NUL")),
    Bad("U+FDD0 in an argument", "messages", call({"city": ["a\ufdd0"]}), ("turn 2", "U+FDD0")),
    Bad("NaN in an argument", "messages", line(call({"x": float("nan")})), ("turn 2",)),
    Bad("a call without a name", "messages", calls([{"function": {"arguments": {}}}]), ("turn 2", "name")),
    Bad("a call of an empty name", "messages", call({}, name=""), ("turn 2", "name")),
    Bad("a call that is a string", "messages", calls(["find()"]), ("turn 2", "'find()'")),
    Bad("calls that are an object", "messages", calls({"name": "find"}), ("tool_calls of turn 2", "a list")),
    Bad("calls that are a text", "messages", calls("find()"), ("tool_calls of turn 2", "a list")),
    Bad("a call by a user", "messages", calls([{"name": "find"}], role="user"), ("turn 2", "role is user")),
    Bad("a result without a call", "messages", chat(USER, {"role": "tool", "content": "5"}, ANSWER), ("turn 2",)),
    Bad("a result after another question", "messages",
        call({}) | chat(*call({})["messages"][:2], USER, {"role": "tool", "content": "5"}, ANSWER), ("turn 3",)),
    Bad("a call of null", "messages", called([None]), ("turn 2 calls null",)),
    Bad("arguments of a key twice", "messages", called([call_of("a", '{"a": 1, "a": 2}')], "a"), ("arguments of",)),
    Bad("a number for a call's id", "messages", called([call_of(1)], "1"), ("id of a call in turn 2 is 1",)),
    Bad("two calls of one id", "messages", called([call_of("a"), call_of("a")], "a"), ("two calls with the id 'a'",)),
    Bad("two results of one call", "messages", called([call_of("a")], "a", "a"), ("turn 4", "waits for its result")),
    Bad("a result of no call", "messages", called([call_of("a")], "b"), ("turn 3", "'b'", "waits for its result")),
    Bad("functions of the old form", "messages", chat(USER, ANSWER, functions=[{"name": "f"}]), ("'functions'",)),
    Bad("a history beside a plain question", "prompt", {**FORMS["prompt"](9), "history": [["q", "a"]]}, ("'history'",)),
    Bad("a call of the old form", "messages", chat(USER, {**ANSWER, "function_call": {"name": "f"}}), ("turn 2",)),
    Bad("tools of broken JSON", "messages", chat(USER, ANSWER, tools="[{"), ("tools", "not JSON")),
    Bad("tools that are an object", "messages", chat(USER, ANSWER, tools={"name": "f"}), ("tools", "a list")),
    Bad("a tool without a name", "messages", chat(USER, ANSWER, tools=[{"description": "x"}]), ("tool 1", "no name")),
    Bad("a tool that is a text", "messages", chat(USER, ANSWER, tools=["find"]), ("tools", "a list")),
    Bad("half a character in a tool", "messages",
        chat(USER, ANSWER, tools=[{"name": "f", "description": "\ud800"}]), ("tool",)),
    # ShareGPT
    Bad("an unknown speaker", "sharegpt", heard(("alien", "x"), ("gpt", "y")), ("turn 1", "'alien'")),
    Bad("a null value", "sharegpt", heard(("human", None), ("gpt", "y")), ("turn 1 is null",)),
    Bad("only the model speaks", "sharegpt", heard(("gpt", "a"), ("gpt", "b")), ("without a question before it",)),
    Bad("the model speaks twice before it is asked", "sharegpt",
        heard(("gpt", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")), ("turn 2", "without a question before it")),
    Bad("the human has the last word", "sharegpt", heard(("human", "a"), ("gpt", "b"), ("human", "c")), ("last turn",)),
    Bad("a call of broken JSON", "sharegpt",
        heard(("human", "a"), ("function_call", "find("), ("observation", "5"), ("gpt", "b")), ("turn 2", "not JSON")),
    Bad("a call of a number", "sharegpt",
        heard(("human", "a"), ("function_call", "7"), ("observation", "5"), ("gpt", "b")), ("turn 2", "7")),
    Bad("an observation without a call", "sharegpt", heard(("human", "a"), ("observation", "5"), ("gpt", "b")),
        ("turn 2", "no turn before it calls")),
    Bad("a number for a conversation", "sharegpt", {"conversations": 7}, ("a list of turns",)),
    # instructions
    Bad("a number for an input", "alpaca", task(input=0), ("input is 0",)),
    Bad("a list for an input", "alpaca", task(input=[]), ("input is []",)),
    Bad("an input and a context", "alpaca", task(context="more"), ("'about 9'", "'more'", "leave out one")),
    Bad("a context and an input", "dolly", FORMS["dolly"](9) | {"input": "x"}, ("'x'", "'about 9'", "leave out one")),
    Bad("an empty instruction", "alpaca", task(instruction=""), ("instruction is empty",)),
    Bad("an empty output", "alpaca", task(output=" "), ("output is empty",)),
    Bad("no output", "alpaca", {"instruction": "a", "input": "b"}, ("no 'output'",)),
    Bad("an image", "alpaca", task(images=["x.png"]), ("'images'",)),
    Bad("a history of three", "alpaca", task(history=[["a", "b", "c"]]), ("history", "pairs")),
    Bad("a history of strings", "alpaca", task(history=["a", "b"]), ("history", "pairs")),
    Bad("a history that is an object", "alpaca", task(history={"a": "b"}), ("history", "pairs")),
    Bad("a history that is a number", "alpaca", task(history=7), ("history", "pairs")),
    Bad("a history of broken JSON", "alpaca", task(history="[["), ("history", "not JSON")),
    Bad("an empty answer in the history", "alpaca", task(history=[["a", ""]]), ("turn 1 in the history is empty",)),
    Bad("a number for a context", "dolly", FORMS["dolly"](9) | {"context": 7}, ("context is 7",)),
    Bad("a null response", "dolly", FORMS["dolly"](9) | {"response": None}, ("response is null",)),
    Bad("a misspelt response", "dolly", {"instruction": "a", "respond": "b"}, ("no 'response'", '"respond"')),
    Bad("no instances", "self-instruct", {"instruction": "a", "instances": []}, ("instances", "[]")),
    Bad("instances that are an object", "self-instruct", {"instruction": "a", "instances": {"x": 1}}, ("instances",)),
    Bad("an instance that is a string", "self-instruct", {"instruction": "a", "instances": ["x"]}, ("instances",)),
    Bad("one empty output of two", "self-instruct",
        {"instruction": "a", "instances": [{"input": "", "output": "b"}, {"input": "", "output": ""}]},
        ("output is empty",)),
    # labels
    Bad("a label out of range", "classification", label(2), ("label 2", "2 names"), LABELS),
    Bad("a negative label", "classification", label(-1), ("label -1",), LABELS),
    Bad("a label of another name", "classification", label("maybe"), ("label 'maybe'",), LABELS),
    Bad("a label of 5,000 digits", "classification", label("9" * 5000), ("label",), LABELS),
    Bad("a label with decimals", "classification", label(1.5), ("label '1.5'",), LABELS),
    Bad("a null label", "classification", label(None), ("label is null",), LABELS),
    Bad("a label of a truth", "classification", label(True), ("label is true",), LABELS),
    Bad("a label of a list", "classification", label([1]), ("label is ['yes']", "a list"), LABELS),
    Bad("an empty label", "classification", label(""), ("label is empty",)),
    Bad("NaN for a label", "classification", b'{"text": "a film", "label": NaN}', ("the label is nan",)),
    Bad("a NUL in a label", "classification", label("g\0"), ("the label has a NUL character",)),
    Bad("half a character in a label", "classification", label("\ud83d"), ("the label", "surrogate")),
    Bad("a label without a text", "classification", {"label": 1}, ("no 'text'",)),
    Bad("a number for the second text", "classification", {**label(1), "text_pair": 7}, ("text_pair is 7",)),
    # trees
    Bad("a tree without an answer", "oasst-trees", tree(replies=[]), ("is an answer",)),
    Bad("a tree of null replies", "oasst-trees", tree(replies=None), ("is an answer",)),
    Bad("a tree of a number of replies", "oasst-trees", tree(replies=5), ()),
    Bad("a tree of true replies", "oasst-trees", tree(replies=True), ()),
    Bad("a tree of strings", "oasst-trees", tree(replies=["yes"]), ("is an answer",)),
    Bad("a tree that an unknown role begins", "oasst-trees", tree(role="robot"), ("turn 1", "'robot'")),
    Bad("a tree without its question", "oasst-trees", tree(text=None), ("turn 1 is null",)),
    Bad("a tree that the model begins", "oasst-trees", tree(role="assistant"), ("without a question before it",)),
    # what only the model's template or length forbids
    Bad("a role the template refuses", "messages",
        turns(("user", "x"), ("user", "refuse this"), ("assistant", "y")), ("template refuses",)),
    Bad("longer than the longest length", "prompt", {"prompt": "a", "completion": "word " * 400},
        ("more than 100",), {"max_length": 100}, stops=False),
    Bad("a prompt that leaves no room for its answer", "prompt", {"prompt": "word " * 400, "completion": "b"},
        ("no answer is left",), {"max_length": 100, "too_long": "truncate"}, stops=False),
]  # fmt: skip
ALONE = [bad for bad in ROWS if bad.stops]
for _place, _one in enumerate(FORMS):
    for _other in [*FORMS, *FORMS][_place + 1 : _place + 3]:
        if (_one, _other) != ("text", "classification"):  # a text with a label is a text too
            ROWS.append(Bad(f"a {_other} row among {_one} rows", _one, FORMS[_other](9), ()))


@pytest.fixture(scope="module")
def writing(hub_tokenizer):
    own = copy.deepcopy(hub_tokenizer)
    refusal = "{% for m in messages %}{% if 'refuse' in m.content %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    own.chat_template = refusal + WITH_TOOLS
    tokenizer = HubTokenizer(own, [own.eos_token_id])
    return TextWriting(tokenizer, ChatTemplate.of_model(tokenizer), "tiny", None)


def sequences(prepared):
    return [(list(row.ids), list(row.loss_mask)) for row in prepared.trained_rows]


@pytest.fixture(scope="module")
def without(writing, tmp_path_factory):
    """What the good rows of a form are by themselves."""
    folder, made = tmp_path_factory.mktemp("clean"), {}

    def of(bad):
        name = f"{bad.form}{sorted(bad.settings.items())}"
        if name not in made:
            (folder / "clean.jsonl").write_bytes(lines(*good(bad.form)))
            prepared = prepare(DataConfig(path=str(folder / "clean.jsonl"), **bad.settings), writing, silent)
            assert not prepared.data_report.fatal and prepared.data_report.format == bad.form
            made[name] = sequences(prepared)
        return made[name]

    return of


def together() -> dict[str, list[Bad]]:
    """Bad rows of one form that are read with the same settings, which lie in one file."""
    groups: dict[str, list[Bad]] = {}
    for bad in ROWS:
        groups.setdefault(f"{bad.form} {[*bad.settings.items()]} {bad.stops}", []).append(bad)
    return groups


GROUPS = together()


@pytest.mark.parametrize("group", GROUPS)
def test_bad_rows_are_told_and_never_trained_on(group, writing, without, tmp_path):
    first, count = GROUPS[group][0], len(GROUPS[group])
    (one, two, *others), file = good(first.form), tmp_path / "rows.jsonl"
    file.write_bytes(lines(one, two, *(bad.row for bad in GROUPS[group]), *others))
    for mode in ("stop", "skip"):
        prepared = prepare(DataConfig(path=str(file), on_bad_row=mode, **first.settings), writing, silent)
        data_report = prepared.data_report
        assert sequences(prepared) == without(first), "the good rows and nothing else"
        assert (data_report.rows, data_report.used, data_report.skipped) == (4 + count, 4, count)
        assert sum(data_report.skipped_why.values()) == count
        why = {skipped.where: skipped.why for skipped in data_report.skipped_rows}
        assert why.keys() == {f"{file}:{number}" for number in range(3, 3 + count)}
        for number, bad in enumerate(GROUPS[group], start=3):
            assert_told(why[f"{file}:{number}"], f"{file}:{number}: ", bad.said)
        assert len(data_report.fatal) == (mode == "stop" and first.stops)
        assert all(fatal.splitlines()[0] in why.values() for fatal in data_report.fatal)


@pytest.mark.parametrize("bad", ALONE[::10], ids=lambda bad: bad.name)
def test_bad_rows_alone_are_no_data_even_if_bad_ones_are_to_be_skipped(bad, writing, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n" + lines(bad.row, bad.row))
    for form in ("auto", bad.form):
        spec = DataConfig(path=str(file), on_bad_row="skip", **(bad.settings | {"format": form}))
        try:
            prepared = prepare(spec, writing, silent)
        except DataError as error:  # a file that begins with a list is a list
            assert_told(str(error), f"{file}:", ())
            continue
        data_report = prepared.data_report
        if form == "auto" and data_report.format not in ("", bad.form):  # good rows of another form
            continue
        assert (data_report.used, len(prepared.trained)) == (0, 0)
        assert data_report.fatal
        assert all(problem.startswith(f"{file}:") for problem in data_report.fatal[0].splitlines())


def assert_told(message, begins, said):
    assert message.startswith(begins), message
    assert [word for word in said if word not in message] == [], message
    assert len(message) < 600 and "\n" not in message
    message.encode()  # it can be printed


# Files


def parquet(rows, **options):
    buffer = io.BytesIO()
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), buffer, **options)
    return buffer.getvalue()


def arrow(rows, make=pa.ipc.new_file):
    buffer = io.BytesIO()
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    with make(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


PAIRS = good("prompt", 6)
LIST = json.dumps(PAIRS, indent=1).encode()
CSV = b"prompt,completion\n" + b"".join(f"question {n},answer {n}\n".encode() for n in range(6))
TSV = CSV.replace(b",", b"\t")
MIXED = CSV.replace(b"answer 2", b"\xe9").replace(b"answer 3", "é ü".encode())
PARQUET, ARROW, STREAM = parquet(PAIRS), arrow(PAIRS), arrow(PAIRS, pa.ipc.new_stream)
HOLLOW = PARQUET[:8] + bytes(len(PARQUET) - 300) + PARQUET[-292:]
WITH_NULL = [*PAIRS[:2], {"prompt": "a", "completion": None}, *PAIRS[2:]]
STRAY = TSV.replace(b"question 2", b'"question" 2').replace(b"answer 4", b'"')
MORE_KEYS = [row | {"id": number, "meta": {"a": [None]}} for number, row in enumerate(PAIRS)]
KEY_TWICE = LIST.replace(b'"completion": "answer 2"', b'"prompt": "x"')
ODD_TIME = pa.table({"prompt": ["a"], "completion": ["b"], "when": pa.array([10**15], pa.timestamp("s"))})
TWICE = pa.Table.from_arrays(
    [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], ["prompt", "completion", "completion"]
)
ENDLESS = pa.table({"text": pa.RunEndEncodedArray.from_arrays(pa.array([2_000_000_000], pa.int32()), pa.array(["x"]))})


def astray():
    """An Arrow file in which a text ends a gigabyte behind the end of all texts."""
    ends = struct.pack("<4i", 0, 3, 8, 13)
    whole = arrow(pa.table({"text": ["one", "three", "seven"]}))
    return whole.replace(ends, ends[:8] + struct.pack("<2i", 1 << 30, 13))


BYTES = pa.table({"prompt": [b"a"], "completion": [b"b"]})
NOT_TEXT = pa.table({"prompt": [{"a": 1}], "completion": ["a"]})


@dataclass(frozen=True)
class BadFile:
    """`kept` are the rows that are read all the same, of those that are skipped `lost`; None where it is refused."""

    name: str
    file: str
    content: bytes
    said: tuple[str, ...] = ()
    where: str = ""
    kept: int | None = None
    lost: int = 0


REFUSED = [
    BadFile("an empty file", "x.jsonl", b"", ("has no rows",)),
    BadFile("a file of blank lines", "x.jsonl", b"\n  \n\t\n\r\n", ("has no rows",)),
    BadFile("a byte order mark alone", "x.jsonl", b"\xef\xbb\xbf", ("has no rows",)),
    BadFile("an empty list", "x.json", b" [ ] \n", ("has no rows",)),
    BadFile("an empty CSV", "x.csv", b"", ("has no rows",)),
    BadFile("a CSV of names alone", "x.csv", b"prompt,completion\n", ("has no rows",)),
    BadFile("an empty Parquet file", "x.parquet", b"", ("not a readable Parquet file",)),
    BadFile("an empty Arrow file", "x.arrow", b"", ("not a readable Arrow file",)),
    BadFile("a Parquet file of no rows", "x.parquet", parquet(pa.table({"text": [""]}).slice(1)), ("no rows",)),
    BadFile("a list cut between rows", "x.json", LIST[: LIST.rindex(b",", 0, -60)], ("in the middle", "missing")),
    BadFile("a list cut inside a row", "x.json", LIST[:-30], ("is not JSON",)),
    BadFile("a list without its end", "x.json", LIST.rstrip(b"]"), ("in the middle", "missing"), ":26"),
    BadFile("a list with more behind it", "x.json", LIST + b"\nmore", ("'more'", "the end is expected"), ":27"),
    BadFile("two lists", "x.json", LIST + LIST, ("the end is expected",)),
    BadFile("a list that lacks a comma", "x.json", LIST.replace(b"},", b"}", 1), ("a comma",), ":6"),
    BadFile("a list with a comma too many", "x.json", LIST.replace(b"\n]", b",\n]"), ("is not JSON",)),
    BadFile("a list of a comma", "x.json", b"[,]", ("is not JSON",), ":1"),
    BadFile("a list that is no UTF-8", "x.json", LIST.replace(b"question 2", b"\xff"), ("not UTF-8",), ":11"),
    BadFile("a list nested deep", "x.json", b"[" * DEEP, ("nested too deeply",), ":1 (element 1)"),
    BadFile("lines that begin with a list", "x.jsonl", b"[1, 2]\n" + lines(*PAIRS), (), ":"),
    BadFile("one object of lists", "x.json", json.dumps({"train": PAIRS}).encode(), ("'train'",), ":1"),
    BadFile("one object over many lines", "x.json", json.dumps(PAIRS[0], indent=1).encode(), (), ":1"),
    BadFile("keys of no form", "x.jsonl", lines({"a": "b"}, {"a": "c"}), ("'a'", "no known row format"), ":1"),
    BadFile("preference pairs", "x.jsonl", lines({"chosen": "a", "rejected": "b"}), ("chosen",), ":1"),
    BadFile("old Macintosh line ends", "x.jsonl", lines(*PAIRS).replace(b"\n", b"\r"), ("is not JSON",), ":1"),
    BadFile("a CSV with an unclosed quote", "x.csv", CSV.replace(b"question 2", b'"question 2'), ("is not CSV",)),
    BadFile("a CSV with a stray quote", "x.csv", CSV.replace(b"question 2", b'"question" 2'), ("is not CSV",), ":4"),
    BadFile("a CSV with a column twice", "x.csv", CSV.replace(b"completion", b"prompt", 1), ("each once",), ":1"),
    BadFile("a CSV with a nameless column", "x.csv", CSV.replace(b"completion", b"", 1), ("has no name",), ":2"),
    BadFile("a CSV without a line of names", "x.csv", CSV.partition(b"\n")[2], ("no known row format",), ":2"),
    BadFile("a CSV behind a blank line", "x.csv", b"\n" + CSV, ("names 0 columns",), ":2"),
    BadFile("a CSV whose cell has no end", "x.csv", CSV + b"a" * 17_000_000 + b",b\n", ("is not CSV",)),
    BadFile("UTF-16", "x.jsonl", lines(*PAIRS).decode().encode("utf-16"), ("UTF-16",)),
    BadFile("UTF-16 without a mark", "x.jsonl", lines(*PAIRS).decode().encode("utf-16-le"), ("UTF-16",)),
    BadFile("UTF-32", "x.jsonl", lines(*PAIRS).decode().encode("utf-32"), ("UTF-",)),
    BadFile("gzip", "x.jsonl", b"\x1f\x8b\x08\0" + bytes(60), ("gzip",)),
    BadFile("gzip under its own name", "x.jsonl.gz", b"\x1f\x8b\x08\0" + bytes(60), ("gzip",)),
    BadFile("zip", "x.jsonl", b"PK\x03\x04" + bytes(60), ("zip",)),
    BadFile("a spreadsheet", "x.xlsx", b"PK\x03\x04" + bytes(60), ("cannot be read as a workbook",)),
    BadFile("zstd", "x.jsonl", b"\x28\xb5\x2f\xfd" + bytes(60), ("zstd",)),
    BadFile("xz", "x.jsonl", lzma.compress(lines(*PAIRS)), ("is compressed (xz)",)),
    BadFile("a pointer of Git LFS", "x.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
            ("is a pointer of Git LFS",)),
    BadFile("a web page", "x.jsonl", b"<!DOCTYPE html>\n<html>Not Found</html>\n", ("is not JSON",), ":1"),
    BadFile("a column named in Latin-1", "x.parquet", PARQUET.replace(b"completion", b"comp\xffetion"), ("damaged",)),
    BadFile("two billion rows in a kilobyte", "x.arrow", arrow(ENDLESS), ("2,000,000,000 rows",)),
    BadFile("a text that ends behind its file", "x.arrow", astray(), ("is damaged",)),
    BadFile("a pickle", "x.jsonl", pickle.dumps(PAIRS, 4), ("pickle",)),
    BadFile("a later pickle", "x.pkl", pickle.dumps(PAIRS, 5)),
    BadFile("a database", "x.jsonl", b"SQLite format 3\0" + bytes(60), ("database",)),
    BadFile("a picture", "x.jsonl", b"\x89PNG\r\n\x1a\n" + bytes(60), ("not UTF-8",), ":1"),
    BadFile("a picture under its own name", "x.png", b"\x89PNG\r\n\x1a\n" + bytes(60), ("an image and no label",)),
    BadFile("text under the name of Parquet", "x.parquet", lines(*PAIRS), ("not a readable Parquet file",)),
    BadFile("text under the name of Arrow", "x.arrow", lines(*PAIRS), ("not a readable Arrow file",)),
    BadFile("prose", "x.txt", b"Once upon a time\n", ("is not JSON",), ":1"),
    BadFile("Parquet cut at its end", "x.parquet", PARQUET[:-6], ("damaged",)),
    BadFile("Parquet cut in the middle", "x.parquet", PARQUET[: len(PARQUET) // 2], ("damaged",)),
    BadFile("Parquet with its middle lost", "x.parquet", HOLLOW, ("damaged",)),
    BadFile("Parquet whose footer lies", "x.parquet", PARQUET[:-8] + b"\xff\xff\xff\x7fPAR1", ("damaged",)),
    BadFile("Arrow cut in the middle", "x.arrow", ARROW[: len(ARROW) // 2], ("damaged",)),
    BadFile("an Arrow stream cut in the middle", "x.arrow", STREAM[: len(STREAM) // 2], ("damaged",)),
    BadFile("a Parquet column twice", "x.parquet", parquet(TWICE), ("completion",)),
    BadFile("Parquet with bytes for text", "x.parquet", parquet(BYTES), ("prompt is b'a'",), ":1"),
    BadFile("Parquet with objects for text", "x.parquet", parquet(NOT_TEXT), ("prompt is {'a': 1}",), ":1"),
]  # fmt: skip
READ = [
    BadFile("a byte order mark", "x.jsonl", b"\xef\xbb\xbf" + lines(*PAIRS), kept=6),
    BadFile("Windows line ends", "x.jsonl", lines(*PAIRS).replace(b"\n", b"\r\n"), kept=6),
    BadFile("no last line end", "x.jsonl", lines(*PAIRS).rstrip(), kept=6),
    BadFile("blank lines between", "x.jsonl", lines(*PAIRS).replace(b"\n", b"\n \n"), kept=6),
    BadFile("a list with a byte order mark", "x.json", b"\xef\xbb\xbf" + LIST, kept=6),
    BadFile("a list behind white space", "x.json", b"\n" * 200 + LIST, kept=6),
    BadFile("a list under the name of lines", "x.jsonl", LIST, kept=6),
    BadFile("lines under the name of a list", "x.json", lines(*PAIRS), kept=6),
    BadFile("a CSV with a byte order mark", "x.csv", b"\xef\xbb\xbf" + CSV, kept=6),
    BadFile("a CSV with Windows line ends", "x.csv", CSV.replace(b"\n", b"\r\n"), kept=6),
    BadFile("a CSV with semicolons", "x.csv", CSV.replace(b",", b";"), kept=6),
    BadFile("a CSV in UTF-16", "x.csv", b"\xfe\xff" + CSV.decode().encode("utf-16-be"), kept=6),
    BadFile("rows of JSON under the name of CSV", "x.csv", lines(*PAIRS), kept=6),
    BadFile("a CSV in cp1252", "x.csv", CSV.replace(b"answer 2", b"\xe9"), kept=6),
    BadFile("names in capitals on the file", "X.JSONL", lines(*PAIRS), kept=6),
    BadFile("a TSV with stray quotes", "x.tsv", STRAY, kept=6),
    BadFile("Parquet under the name of lines", "x.jsonl", PARQUET, kept=6),
    BadFile("Parquet under the name of CSV", "x.csv", PARQUET, kept=6),
    BadFile("Arrow under the name of lines", "x.jsonl", ARROW, kept=6),
    BadFile("a time beyond all calendars beside the text", "x.parquet", parquet(ODD_TIME), kept=1),
    BadFile("unknown keys", "x.jsonl", lines(*MORE_KEYS), kept=6),
    BadFile("a list with a bad row", "x.json", LIST.replace(b'"answer 2"', b"7"), ("completion is 7",),
            ":10 (element 3)", 5, 1),
    BadFile("a list with a key twice", "x.json", KEY_TWICE, ("twice",), ":10 (element 3)", 5, 1),
    BadFile("a list with a number in it", "x.json", LIST.replace(b"[\n", b"[\n7,\n", 1), ("holds a int",),
            ":2 (element 1)", 6, 1),
    BadFile("a CSV row too short", "x.csv", CSV.replace(b",answer 2", b""), ("has 1 cells",), ":4", 5, 1),
    BadFile("a CSV row too long", "x.csv", CSV.replace(b"answer 2", b"answer, 2"), ("has 3 cells",), ":4", 5, 1),
    BadFile("a CSV row that is no UTF-8", "x.csv", MIXED, ("not UTF-8",), ":4", 5, 1),
    BadFile("a CSV row with a NUL", "x.csv", CSV.replace(b"answer 2", b"a\0"), ("NUL",), ":4", 5, 1),
    BadFile("a CSV row with an empty cell", "x.csv", CSV.replace(b"answer 2", b""), ("is empty",), ":4", 5, 1),
    BadFile("a TSV row too short", "x.tsv", TSV.replace(b"\tanswer 2", b""), ("has 1 cells",), ":4", 5, 1),
    BadFile("a null in Parquet", "x.parquet", parquet(WITH_NULL), ("null",), ":3", 6, 1),
    BadFile("a null in Arrow", "x.arrow", arrow(WITH_NULL), ("null",), ":3", 6, 1),
]  # fmt: skip


@pytest.mark.parametrize("bad", REFUSED, ids=lambda bad: bad.name)
def test_a_bad_file_is_refused_with_its_name_even_if_bad_rows_are_to_be_skipped(bad, writing, tmp_path):
    file = tmp_path / bad.file
    file.write_bytes(bad.content)
    try:
        prepared = prepare(DataConfig(path=str(file), on_bad_row="skip"), writing, silent)
    except DataError as error:
        assert_told(str(error), f"{file}{bad.where}", bad.said)
        return
    assert (prepared.data_report.used, len(prepared.trained)) == (0, 0)
    (problems,) = prepared.data_report.fatal
    assert_told(problems.splitlines()[0], f"{file}{bad.where}", bad.said)
    assert all(problem.startswith(f"{file}:") for problem in problems.splitlines()[1:20])


@pytest.mark.parametrize("bad", READ, ids=lambda bad: bad.name)
def test_what_is_unusual_is_read_and_what_is_bad_in_it_costs_only_itself(bad, writing, tmp_path):
    file = tmp_path / bad.file
    file.write_bytes(bad.content)
    for mode in ("stop", "skip") if bad.lost else ("stop",):
        prepared = prepare(DataConfig(path=str(file), on_bad_row=mode), writing, silent)
        data_report = prepared.data_report
        if mode == "stop" and bad.lost:
            assert_told(data_report.fatal[0], f"{file}{bad.where}: ", bad.said)
            continue
        assert not data_report.fatal
        assert (data_report.used, data_report.skipped, len(prepared.trained)) == (bad.kept, bad.lost, bad.kept)
        assert [skipped.where for skipped in data_report.skipped_rows] == ([f"{file}{bad.where}"] if bad.lost else [])
        for skipped in data_report.skipped_rows:
            assert_told(skipped.why, f"{file}{bad.where}: ", bad.said)


@pytest.mark.parametrize("damage", [b"bad\xff\tz\n", b"bad\n", b"a\tb\tc\n"], ids=["no UTF-8", "too short", "too long"])
def test_a_bad_row_of_a_table_does_not_change_how_its_neighbours_are_read(writing, tmp_path, damage):
    rows = 'prompt\tcompletion\n"say ""hi"""\t"a\tb"\n"two\nlines"\té ü\n'.encode()
    clean, file = tmp_path / "clean.tsv", tmp_path / "rows.tsv"
    clean.write_bytes(rows)
    file.write_bytes(rows + damage)
    wanted = prepare(DataConfig(path=str(clean)), writing, silent)
    assert wanted.data_report.used == 2
    prepared = prepare(DataConfig(path=str(file), on_bad_row="skip"), writing, silent)
    assert sequences(prepared) == sequences(wanted)
    assert [skipped.where for skipped in prepared.data_report.skipped_rows] == [f"{file}:5"]


def test_a_line_of_50_megabytes_costs_only_itself(writing, tmp_path):
    file = tmp_path / "rows.jsonl"
    with file.open("wb") as opened:
        opened.write(lines(PAIRS[0]) + b'{"prompt": "')
        for _ in range(50):
            opened.write(b"x" * 1_000_000)
        opened.write(b'", "completion": "b"}\n' + lines(PAIRS[1]))
    prepared = prepare(DataConfig(path=str(file), on_bad_row="skip"), writing, silent)
    assert len(prepared.trained) == 2
    (skipped,) = prepared.data_report.skipped_rows
    assert_told(skipped.why, f"{file}:2: ", ("longer than", "bytes"))
    stopped = prepare(DataConfig(path=str(file)), writing, silent)
    assert stopped.data_report.fatal == (skipped.why,)


# Paths


def a_fifo(path):
    os.mkfifo(path)


def a_loop(path):
    path.symlink_to(path)


def a_link_to_nothing(path):
    path.symlink_to(path.parent / "nowhere.jsonl")


def an_empty_folder(path):
    path.mkdir()


def a_folder_of_other_things(path):
    path.mkdir()
    (path / "README.md").write_text("no rows here")
    (path / ".hidden.jsonl").write_bytes(lines(*PAIRS))
    (path / "_part.jsonl").write_bytes(lines(*PAIRS))


def a_folder_with_a_fifo(path):
    path.mkdir()
    os.mkfifo(path / "rows.jsonl")


def a_folder_that_holds_itself(path):
    path.mkdir()
    (path / "again").symlink_to(path, target_is_directory=True)


def nothing(path):
    pass


PATHS = [a_fifo, a_loop, a_link_to_nothing, an_empty_folder, a_folder_of_other_things, a_folder_with_a_fifo,
         a_folder_that_holds_itself, nothing]  # fmt: skip


@pytest.mark.parametrize("make", PATHS, ids=lambda make: make.__name__.replace("_", " "))
def test_what_is_no_file_of_rows_is_refused_with_its_name(make, writing, tmp_path):
    path = tmp_path / "rows.jsonl"
    make(path)
    for mode in ("stop", "skip"):
        with pytest.raises(DataError) as caught:
            prepare(DataConfig(path=str(path), on_bad_row=mode), writing, silent)
        assert_told(str(caught.value), f"{path}: ", ())


@pytest.mark.parametrize(
    "path",
    ["/dev/null", "/dev/zero", "x" * 300, "a\0b", "~nobody-of-this-name/x.jsonl", "nowhere/rows.jsonl", "\udcff"],
)
def test_a_path_of_no_file_is_refused(path, writing):
    with pytest.raises(RankwiseError) as caught:
        prepare(DataConfig(path=path), writing, silent)
    assert str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told(writing, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(lines(*PAIRS))
    file.chmod(0)
    with pytest.raises(DataError) as caught:
        prepare(DataConfig(path=str(file)), writing, silent)
    assert_told(str(caught.value), f"{file}: ", ("cannot be read",))


def test_a_file_whose_name_is_no_text_is_refused(writing, tmp_path):
    for name in (b"\xff.jsonl", b"x.jsonl"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(lines(*PAIRS))
    with pytest.raises(DataError) as caught:
        prepare(DataConfig(path=str(tmp_path)), writing, silent)
    assert_told(str(caught.value), f"{tmp_path}/\\udcff.jsonl", ("name",))


def test_one_bad_file_of_a_folder_is_told_by_its_own_name(writing, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(*PAIRS))
    (tmp_path / "b.jsonl").write_bytes(lines(PAIRS[0], b"{"))
    data_report = prepare(DataConfig(path=str(tmp_path)), writing, silent).data_report
    assert_told(data_report.fatal[0], f"{tmp_path / 'b.jsonl'}:2: ", ("is not JSON",))


# Any damage


TEXT_FILES = {
    "x.jsonl": lines(*PAIRS),
    "x.json": LIST,
    "x.csv": CSV.replace(b"question 1", b'"two\nlines"'),
    "x.tsv": TSV,
}
BINARY_FILES = {"x.parquet": PARQUET, "x.arrow": ARROW, "y.arrow": STREAM}


MODES = st.sampled_from(["stop", "skip"])


def told_or_read(file, writing, mode, **more):
    """What no damage may break: an error that names the file, or rows that are all accounted for."""
    try:
        spec = DataConfig(path=str(file), on_bad_row=mode, max_length=100_000, **more)
        data_report = preparing.checked(spec, writing, file.parent)
    except DataError as error:
        assert str(error).startswith(str(file)), error
        return
    assert data_report.skipped == len(data_report.skipped_rows) == data_report.rows - data_report.used
    assert data_report.used or data_report.fatal
    assert all(skipped.why.startswith(f"{file}:") for skipped in data_report.skipped_rows)
    if mode == "stop":
        assert bool(data_report.fatal) == bool(data_report.skipped) or not data_report.rows


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where each example lies in the place of the one before it."""
    return tmp_path_factory.mktemp("damaged")


@settings(max_examples=draws(70), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(TEXT_FILES)),
    share=st.floats(0, 1, exclude_max=True),
    size=st.integers(0, 30),
    put=st.binary(max_size=8) | st.sampled_from([b'"', b"\n", b"\t", b",", b"{", b"]", b"\0", b"\xff", b"\\u0000"]),
    mode=MODES,
)
def test_any_damage_to_a_text_file_is_told_or_costs_only_what_it_hit(writing, place, name, share, size, put, mode):
    content = TEXT_FILES[name]
    start = int(share * len(content))
    file = place / name
    file.write_bytes(content[:start] + put + content[start + size :])
    told_or_read(file, writing, mode)


@settings(max_examples=draws(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(BINARY_FILES)), share=st.floats(0, 1, exclude_max=True), mode=MODES)
def test_a_binary_file_cut_anywhere_is_told(writing, place, name, share, mode):
    file = place / name
    file.write_bytes(BINARY_FILES[name][: int(share * len(BINARY_FILES[name]))])
    told_or_read(file, writing, mode)


KEYS = ["role", "content", "text", "replies", "function", "name", "arguments", "weight", "output"]
VALUES = [0, -1, 10**400, "", "\0", "\ud800", "\ufdd0", "9" * 5000, "[", "{}", "null"]
ANYTHING = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(st.characters(), max_size=4),
        st.sampled_from(VALUES),
    ),
    lambda inside: st.one_of(
        st.lists(inside, max_size=3),
        st.dictionaries(st.text(max_size=2) | st.sampled_from(KEYS), inside, max_size=3),
    ),
    max_leaves=5,
)
WHOLE = {
    **{form: make(7) for form, make in FORMS.items()},
    "messages": call({"city": "Oslo"}, weight=1) | {"tools": [{"name": "find", "parameters": {}}], "system": "s"},
    "alpaca": FORMS["alpaca"](7) | {"history": [["a", "b"]], "system": "s"},
}


def places(value, path=()):
    """Every place inside a row."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*path, key)
        yield from places(item, (*path, key))


def put_at(row, path, value):
    row = copy.deepcopy(row)
    here = row
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    return row


@settings(max_examples=draws(80), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), form=st.sampled_from(sorted(WHOLE)), named=st.booleans(), mode=MODES)
def test_any_json_at_any_place_of_a_row_is_read_or_told(writing, place, data, form, named, mode):
    row = WHOLE[form]
    path = data.draw(st.sampled_from(list(places(row))))
    changed = put_at(row, path, data.draw(ANYTHING))
    file = place / "rows.jsonl"
    file.write_bytes(lines(changed, row))
    labels = {"labels": ("no", "yes")} if form == "classification" else {}
    told_or_read(file, writing, mode, **labels, **({"format": form} if named else {}))


# The commands


@pytest.mark.parametrize("content", [lines(PAIRS[0], b"{", PAIRS[1]), lines(*PAIRS) + b"\xff", LIST[:-20]])
def test_a_training_on_bad_rows_ends_before_it_began_and_leaves_nothing(content, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_bytes(content)
    words = ("train", "--model", tiny_folder, "--data", "rows.jsonl", "--run", "r", "--steps", 1, "--rank", 1)
    result = rankwise(*words, "--json")
    assert result.exit_code == 2 and "Traceback" not in result.stderr
    assert "rows.jsonl:" in json.loads(result.stdout)["error"]
    assert not (tmp_path / "runs" / "r").exists()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"] == ["rows.jsonl"]


def test_a_training_that_skips_a_bad_row_lists_it_in_its_data_report(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_bytes(lines(PAIRS[0], b"{", PAIRS[1]))
    words = ("train", "--model", tiny_folder, "--data", "rows.jsonl", "--run", "r", "--steps", 1, "--rank", 1)
    result = rankwise(*words, "--on-bad-row", "skip")
    assert result.exit_code == 0, result.output
    assert "rows: 3 read, 2 used, left out: 1" in result.stderr
    data_report = json.loads((tmp_path / "runs" / "r" / "data_report.json").read_text())
    assert (data_report["used"], data_report["skipped"]) == (2, 1)
    assert data_report["skipped_rows"][0]["where"] == "rows.jsonl:2"
