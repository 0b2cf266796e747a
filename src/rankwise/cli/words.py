"""A message in the words of the command that prints it, since one message serves many commands.

    --prompt "{a}" --completion "{b}"     in train      as it is
                                          in evaluate   prompt: "{a}" completion: "{b}", for the YAML file of a task
    --max-length                          in evaluate   as it is, and a last line: a flag of rankwise train
    Give more rows, or raise --held-out   in classify   Give more rows

A flag that follows the name of its command (`rankwise export --format`) stays, and so does one that is nobody's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

FLAG = re.compile(r"(?<![\w`-])--[a-z][a-z-]+")
OF_ROWS = re.compile(
    r"--(?:set data\.)?(prompt|completion|format|ignore[-_]columns|columns)(?:\.(\w+))?"
    r"[ =](\"[^\"]*\"|'[^']*'|\S*[^\s.,;:)])"
)
"""A flag that says how rows are read, with its value; a task's file takes the same settings."""
NAMED = re.compile(r"rankwise ([a-z]+(?: [a-z]+)?)(?:(?!rankwise )[^.`)])*$")
IN_A_TASK = "rankwise evaluate takes these in the YAML file of a task (--task FILE.yaml)."
DECIDING = ("classify", "demo")
"""Commands that choose the settings of their trainings themselves, so that a flag of another is no way out."""
_running: list[Any] = []
"""The command group, and the words it was called with."""


def remember(group: Any, words: Sequence[str]) -> None:
    """Which command prints the messages from here on."""
    _running[:] = [group, list(words)]


def in_own_words(message: str) -> str:
    """The message in the words of the command that runs."""
    if not _running or "--" not in message:
        return message
    group, words = _running
    every = dict(flags_of_all(group))
    name = next((" ".join(words[:many]) for many in (2, 1) if " ".join(words[:many]) in every), None)
    return message if name is None else reworded(message, name, every)


def flags_of_all(command: Any, name: str = "") -> Iterator[tuple[str, set[str]]]:
    """Each command's flags."""
    for one, inner in getattr(command, "commands", {}).items():
        yield from flags_of_all(inner, f"{name} {one}".strip())
    if name:
        given = [flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)]
        yield name, {"--help", *given}


def reworded(message: str, command: str, every: dict[str, set[str]]) -> str:
    own, notes = every[command], list[str]()
    if "--task" in own and "--prompt" not in own:
        message, changes = OF_ROWS.subn(_in_a_task, message)
        notes = [IN_A_TASK] * bool(changes)
    flags = dict.fromkeys(one[0] for one in FLAG.finditer(message) if not _is_named(message, one, every))
    owner = {flag: next((name for name in ("train", *every) if flag in every.get(name, ())), None) for flag in flags}
    others = [flag for flag in flags if flag not in own and owner[flag] is not None]
    if others and command in DECIDING and (left := _without(message, others)):
        return left
    notes += [f"{flag} is a flag of rankwise {owner[flag]}." for flag in others]
    return " ".join([message if not notes or message.endswith(".") else f"{message}.", *notes])


def _without(message: str, flags: Sequence[str]) -> str:
    """The message without what proposes these flags: from the comma before one to the end of its sentence."""
    clause = rf"(?:^|(?<=[.;:,])\s|\n)(?:(?![.;:,]\s).)*?(?:{'|'.join(flags)})(?![\w-])(?:(?![.;]\s).)*"
    return re.sub(r"[,;:]+(?=\.|$)", "", re.sub(clause, "", message)).strip()


def _in_a_task(flag: re.Match[str]) -> str:
    name, field, value = flag.groups()
    return f"{name.replace('-', '_')}: {value if field is None else f'{{{field}: {value}}}'}"


def _is_named(message: str, flag: re.Match[str], every: dict[str, set[str]]) -> bool:
    """Whether its command is named before it."""
    before = NAMED.search(message[: flag.start()])
    return before is not None and any(flag[0] in every.get(name, ()) for name in (before[1], before[1].split()[0]))


def visible(text: str) -> str:
    """Text of other people, safe for a terminal: control characters are printed as escapes."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else repr(character)[1:-1] for character in text
    )
