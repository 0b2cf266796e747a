"""What somebody types, pastes or pipes into `rankwise chat`, message by message.

A line is a message. Several lines are one message where they are pasted on a terminal, or stand between two lines of
three quotes, on a terminal and in a pipe alike:

    \"\"\"
    the first line
    the second line
    \"\"\"

An opening that has text behind it is closed at the end of a line instead. Quotes that begin and end a message are not
part of it, and nothing between them is a command.
"""

from __future__ import annotations

import re
import select
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from rankwise.errors import ConfigError, DataError, did_you_mean

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
"""Seconds in which the next line of a paste is there, where the terminal does not mark a paste."""


@dataclass(frozen=True)
class Typed:
    """A message, or a command with the text behind it."""

    text: str
    command: str | None = None


class Typing:
    """Reads from stdin. On a terminal a prompt is shown, and lines can be edited."""

    def __init__(self) -> None:
        self.terminal = sys.stdin.isatty()
        self._marked = self.terminal and sys.stdout.isatty() and _marks_pastes()
        self._ahead: deque[str] = deque()
        """Lines that were read already."""

    def next(self) -> Typed | None:
        """None at the end. An empty line is an empty message."""
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
        """Up to the closing quotes. `opening` begins with quotes."""
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
        """The other lines of what was pasted with the line just read."""
        if self._marked:
            lines = list(self._ahead)
            self._ahead.clear()
            return lines
        lines = []
        while self.terminal and select.select([sys.stdin], [], [], PASTED)[0]:
            line = self._line("")
            if line is None:
                break
            lines.append(line)
        return lines

    def _line(self, prompt: str) -> str | None:
        """A paste that is marked as one comes as a whole."""
        if not self._ahead:
            try:
                self._ahead.extend(input(prompt if self.terminal else "").split("\n"))
            except EOFError:
                return None
            except UnicodeDecodeError as error:
                raise not_utf8(error) from None
        return self._ahead.popleft()


def _marks_pastes() -> bool:
    """Line editing and history, where this Python has them; whether it tells a paste from what is typed."""
    with suppress(ImportError):
        import readline

        if "libedit" not in (readline.__doc__ or ""):
            readline.parse_and_bind("set enable-bracketed-paste on")
            return True
    return False


def not_utf8(error: UnicodeDecodeError) -> DataError:
    return DataError(f"the prompt from stdin is not UTF-8 text (byte {error.start}).")
