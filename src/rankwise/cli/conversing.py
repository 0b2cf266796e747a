"""A chat on a terminal or through a pipe: messages and commands on stdin, answers on stdout, remarks on stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from rankwise.cli.typed import HELP, QUOTES, Typed, Typing
from rankwise.cli.visible import visible
from rankwise.errors import ConfigError, Interrupted, RankwiseError

if TYPE_CHECKING:
    from rankwise.commands.chat import Chat

REPEATS = "[stopped: the answer repeats itself]"
NO_SYSTEM = "none"


def converse(talk: Chat, *, aloud: bool) -> bool:
    """Run the chat until the user ends it. Returns whether Ctrl-C ended it; the turns so far stay in `talk`."""
    typing = Typing()
    if typing.terminal:
        how = f"For several lines, paste them or put them between two lines of {QUOTES}."
        remark(f"Enter sends a line. {how} /help lists the commands.")
    try:
        while (typed := _typed(typing)) is not None and typed.command != "/quit":
            _obey(talk, typed) if typed.command else _say(talk, typed.text, aloud)
    except Interrupted:
        raise
    except KeyboardInterrupt:
        return True
    return False


def _typed(typing: Typing) -> Typed | None:
    """The next message or command. After an unknown command, print the error and read on."""
    while True:
        try:
            return typing.next()
        except ConfigError as error:
            remark(f"rankwise: {error}")


def _obey(talk: Chat, typed: Typed) -> None:
    match typed.command:
        case "/new":
            talk.forget()
        case "/help":
            remark(HELP)
        case "/system" if typed.text:
            talk.set_system(None if typed.text == NO_SYSTEM else typed.text)
        case "/system":
            remark("there is no system message" if talk.system is None else f"system message: {talk.system}")


def _say(talk: Chat, text: str, aloud: bool) -> None:
    if not text:
        return
    try:
        talk.ask(text)
        for side in talk.histories:
            _answer(talk, side, aloud)
    except RankwiseError as error:  # such as a conversation that is too long for the model; the chat goes on
        remark(f"rankwise: {error} /new starts a new conversation.")


def _answer(talk: Chat, side: str, aloud: bool) -> None:
    if aloud and len(talk.histories) > 1:
        typer.echo(f"{side}: ", nl=False)
    answer = talk.answer(side, speak if aloud else None)
    if aloud:
        typer.echo()
    tell_repetition(answer.stopped)


def tell_repetition(stopped: str, side: str = "") -> None:
    if stopped == "repetition":
        sys.stdout.flush()
        remark(f"{side}{REPEATS}")


def remark(text: str) -> None:
    print(visible(text), file=sys.stderr, flush=True)


def speak(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
