"""A chat on a terminal or through a pipe: messages and commands on stdin, answers on stdout, remarks on stderr.

A line is a message. Several lines are one message if they are pasted on a terminal, or if they stand between two lines
of three quotes:

    \"\"\"
    the first line
    the second line
    \"\"\"

If text follows the opening quotes on the same line, the closing quotes stand at the end of a line. The quotes are not
part of the message, and nothing between them is a command.
"""

from __future__ import annotations

import re
import select
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from rankwise.cli.words import visible
from rankwise.errors import ConfigError, DataError, Interrupted, RankwiseError, did_you_mean

if TYPE_CHECKING:
    from rankwise.commands.generate import Chat


REPEATS = "[stopped: the answer repeats itself]"
NO_SYSTEM = "none"
QUOTES = '"""'
COMMANDS = {
    "/new": "start a new conversation; the system message stays",
    "/system": "show the system message; /system TEXT sets it, /system none removes it",
    "/help": "list the commands",
    "/quit": "end, like Ctrl-D and Ctrl-C",
}
HELP = "\n".join(
    [*(f"{name:<10} {does}" for name, does in COMMANDS.items()),
     f"For a message of several lines, paste it or put it between two lines of {QUOTES}."]
)  # fmt: skip
PASTED = 0.05
"""Seconds to wait for the next line of a paste, on a terminal that does not mark pastes."""


@dataclass(frozen=True)
class Typed:
    """A message, or a command with the text behind it."""

    text: str
    command: str | None = None


class Typing:
    """Reads messages from stdin. A terminal shows a prompt, and lines can be edited there."""

    def __init__(self) -> None:
        self.terminal = sys.stdin.isatty()
        self._marked = self.terminal and sys.stdout.isatty() and _marks_pastes()
        self._ahead: deque[str] = deque()
        """Lines that were read and not used yet."""

    def next(self) -> Typed | None:
        """The next message or command; None at the end of the input. An empty line is an empty message."""
        line = self._line("> ")
        if line is None:
            return None
        text = line.strip()
        if text.startswith("/") and not self._ahead:
            return self._command(text)
        if text.startswith(QUOTES):
            return Typed(self._quoted(text))
        return Typed("\n".join([text, *self._pasted()]).strip())

    def _command(self, text: str) -> Typed:
        name, _, rest = text.partition(" ")
        rest = rest.strip()
        if name == "/system":
            return Typed(self._quoted(rest) if rest.startswith(QUOTES) else rest, name)
        if name in COMMANDS and not rest:
            return Typed("", name)
        if near := did_you_mean(name, COMMANDS) if re.fullmatch(r"/[a-z]+", name) else "":
            unknown = f'"{name}" takes no text.' if name in COMMANDS else f'there is no command "{name}".{near}'
            raise ConfigError([f"{unknown} To send it as a message, put it between {QUOTES} and {QUOTES}."])
        return Typed("\n".join([text, *self._pasted()]).strip())  # such as a path

    def _quoted(self, opening: str) -> str:
        """Read up to the closing quotes. `opening` begins with quotes."""
        first = opening.removeprefix(QUOTES)
        if first.endswith(QUOTES):
            return first.removesuffix(QUOTES)
        lines = [first] if first else []
        while (line := self._line("... ")) is not None:
            if first and line.rstrip().endswith(QUOTES):
                return "\n".join([*lines, line.rstrip().removesuffix(QUOTES)])
            if not first and line.rstrip() == QUOTES:
                return "\n".join(lines)
            lines.append(line)
        where = "at the end of a line" if first else "on a line of its own"
        raise DataError(
            f"the message that begins with {QUOTES}{first[:40]} is not closed and was not sent. "
            f"Close it with {QUOTES} {where}."
        )

    def _pasted(self) -> list[str]:
        """The lines that were pasted together with the line just read."""
        if self._marked:
            lines = list(self._ahead)
            self._ahead.clear()
            return lines
        lines = []
        while self.terminal and _more_is_typed():
            line = self._line("")
            if line is None:
                break
            lines.append(line)
        return lines

    def _line(self, prompt: str) -> str | None:
        """The next line. A marked paste arrives as one text, and its further lines wait in `_ahead`."""
        if not self._ahead:
            try:
                self._ahead.extend(input(prompt if self.terminal else "").split("\n"))
            except EOFError:
                return None
            except UnicodeDecodeError as error:
                raise not_utf8(error) from None
        return self._ahead.popleft()


def _more_is_typed() -> bool:
    """Whether a terminal that does not mark pastes has further characters."""
    if sys.platform != "win32":
        return bool(select.select([sys.stdin], [], [], PASTED)[0])
    import msvcrt

    time.sleep(PASTED)  # a console is no file that could be waited for
    return msvcrt.kbhit()


def _marks_pastes() -> bool:
    """Turn on line editing and history, if available. Returns whether the terminal marks pastes."""
    with suppress(ImportError):
        import readline

        if "libedit" not in (readline.__doc__ or ""):
            readline.parse_and_bind("set enable-bracketed-paste on")
            return True
    return False


def not_utf8(error: UnicodeDecodeError) -> DataError:
    return DataError(f"the prompt from stdin is not UTF-8 text (byte {error.start}).")


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
