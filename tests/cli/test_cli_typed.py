"""What is typed, pasted or piped into a chat is cut into messages and commands as it was meant."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import rankwise
from rankwise.cli.conversing import Typed, Typing
from rankwise.errors import ConfigError, DataError

Q = '"""'
READ = """
import json, os, sys
from rankwise.cli.conversing import Typing
typing = Typing()
told = open(int(sys.argv[1]), "w")
while (typed := typing.next()) is not None and typed.command != "/quit":
    print(json.dumps([typed.command, typed.text]), file=told, flush=True)
"""


def piped(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    typing, found = Typing(), []
    while (typed := typing.next()) is not None:
        found.append((typed.command, typed.text))
    return found


def on_a_terminal(entries, program=READ):
    """What a program hears of these bytes from a terminal, the next of which are typed when it asks for some."""
    ours, theirs = pty.openpty()
    heard, told = os.pipe()
    env = os.environ | {"TERM": "xterm", "PYTHONPATH": str(Path(rankwise.__file__).parents[1])}
    words = [sys.executable, "-c", program, str(told)]
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=env, pass_fds=[told]) as process:
        os.close(theirs)
        os.close(told)
        for entry in [*entries, b"/quit\r"]:
            shown = b""
            while not shown.endswith(b"> "):
                shown += os.read(ours, 4096)
            os.write(ours, entry)
        with suppress(OSError):
            while os.read(ours, 4096):  # what is shown has to be taken, or it waits
                pass
        os.close(ours)
    assert process.returncode == 0
    with open(heard) as lines:
        return [tuple(json.loads(line)) for line in lines]


def test_each_line_of_a_pipe_is_a_message(monkeypatch):
    assert piped(monkeypatch, "one\n  two \n\nthree") == [(None, "one"), (None, "two"), (None, ""), (None, "three")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{Q}\na\n  b\n\nc\n{Q}\n", "a\n  b\n\nc"),
        (f"{Q}a\nb{Q}\n", "a\nb"),
        (f"{Q}a\nb\n{Q}\n", "a\nb\n"),
        (f"{Q}alone{Q}\n", "alone"),
        (f"{Q}/new{Q}\n", "/new"),
        (f"{Q}\ndef f():\n    {Q}Adds.{Q}\n    {Q}\n{Q}  \n", f"def f():\n    {Q}Adds.{Q}\n    {Q}"),
        (f"{Q}\n/quit\n{Q}\n", "/quit"),
        (f"{Q}\n{Q}\n", ""),
    ],
)
def test_several_lines_between_quotes_are_one_message_word_for_word(monkeypatch, text, message):
    assert piped(monkeypatch, f"before\n{text}after\n") == [(None, "before"), (None, message), (None, "after")]


@pytest.mark.parametrize("text", [f"{Q}\nnever closed\n", f"{Q}never\nclosed\n{Q} more\n", Q, f"/system {Q}a\n"])
def test_quotes_that_are_never_closed_are_told_and_nothing_is_sent(monkeypatch, text):
    with pytest.raises(DataError, match="is not closed"):
        piped(monkeypatch, text)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("/new", ("/new", "")),
        ("/quit", ("/quit", "")),
        ("/help", ("/help", "")),
        ("/system", ("/system", "")),
        ("/system  Be brief. ", ("/system", "Be brief.")),
        (f"/system {Q}Be\nbrief.{Q}", ("/system", "Be\nbrief.")),
        ("/tmp/file is full; why?", (None, "/tmp/file is full; why?")),
        ("/ is the root", (None, "/ is the root")),
        ("/etc", (None, "/etc")),
        ("what does /new do?", (None, "what does /new do?")),
    ],
)
def test_commands_are_known_and_other_text_is_text(monkeypatch, line, found):
    assert piped(monkeypatch, f"{line}\nafter\n") == [found, (None, "after")]


@pytest.mark.parametrize(
    ("line", "meant"), [("/sytem Be brief.", "/system"), ("/newer", "/new"), ("/new x", "no text")]
)
def test_what_is_nearly_a_command_is_not_sent_as_a_message(monkeypatch, line, meant):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{line}\nafter\n"))
    typing = Typing()
    with pytest.raises(ConfigError, match=meant):
        typing.next()
    assert typing.next() == Typed("after")


def test_what_is_no_text_is_told(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    with pytest.raises(DataError, match="byte 3"):
        Typing().next()


def pasted(text):
    """As terminals that mark a paste send it."""
    return b"\x1b[200~" + text.replace("\n", "\r").encode() + b"\x1b[201~"


def test_a_paste_of_several_lines_is_one_message_on_a_terminal():
    entries = [
        b"hello\r", pasted("a\n  b\n\nc") + b"\r", pasted("/new\nis what I typed\n") + b"\r", b"/new\r",
        pasted(f"{Q}\nx\ny\n{Q}") + b"\r", pasted("one") + b" line\r",
    ]  # fmt: skip
    assert on_a_terminal(entries) == [
        (None, "hello"), (None, "a\n  b\n\nc"), (None, "/new\nis what I typed"), ("/new", ""), (None, "x\ny"),
        (None, "one line"),
    ]  # fmt: skip


def test_where_a_paste_is_not_marked_its_lines_come_at_once():
    without = f"import rankwise.cli.conversing as typed\ntyped._marks_pastes = lambda: False\n{READ}"
    assert on_a_terminal([b"a\nb\n\nc\n", b"next\n"], without) == [(None, "a\nb\n\nc"), (None, "next")]
