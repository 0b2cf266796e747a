"""One engine in a process of its own: a request as JSON to the `answer` of its file, and the reply as JSON.

    request  {"export": folder, file or address, "base": folder or null, "format": …, "threads": n,
              "base_settings": what the base's config.json lacks for readers of older names,
              "auto_class": by which transformers loads the model,
              "questions": [{"prompt": text, "prompt_ids": […], "answer_ids": […], "answer": text,
                             "max_new_tokens": n}, …],
              "conversations": [[{"role": …, "content": …}, …], …], "thinks": whether they are rendered for reasoning}
             of a classifier {"outputs": n, "classes": […], "problem_type": as in a config.json, or null,
              "questions": [{"text": …, "pair": text or null, "ids": …} or {"image": file}, …]}, and where the words of
             a text have classes {"first": the numbers of their first tokens}
    reply    {"engine": name, "version": …, "end_id": id or null, "stop_ids": ids or null,
              "conversations": [ids or null, …], "conversation_sizes": [tokens or null, …],
              "replies": [{"prompt_ids": […], "answer_ids": […], "answer": text, "log_probabilities": […],
                           "logits": […]}, …]}
             of a classifier {"replies": [{"outputs": […], "prompt_ids": ids or null}, …], "milliseconds": of a reply,
             usually}, the outputs of words one after the other;
             of a failure {"error": text, "unreachable": whether no server answered}

`log_probabilities` and `logits` are those of the request's answer_ids, each after the tokens before it. An engine says
null where it cannot say something. A crash, a time-out and anything else on stdout become one sentence, and end nothing
else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from rankwise.errors import ConfigError, one_line
from rankwise.exporting.engines.engine import Package
from rankwise.exporting.engines.table import ENGINES
from rankwise.system.processor import usable_cores

INTERPRETERS = "RANKWISE_ENGINES"
"""Interpreters of environments that have engines, separated as in PATH. Set and empty: no engine is run."""
SECONDS = 1800
LONGEST_REPLY = 200_000_000
LONGEST_REASON = 300
CHILD = Path(__file__).with_name("engine_child.py")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class EngineReply(_Strict):
    """What an engine says to one question."""

    prompt_ids: list[int] | None = None
    answer_ids: list[int] | None = None
    answer: str | None = None
    log_probabilities: list[FiniteFloat] | None = None
    logits: list[FiniteFloat] | None = None
    outputs: list[FiniteFloat] | None = None


class EngineReplies(_Strict):
    engine: str
    version: str
    replies: list[EngineReply]
    conversations: list[list[int] | None] = []
    end_id: int | None = None
    """The end token of the export's tokenizer."""
    stop_ids: list[int] | None = None
    """The tokens at which the engine stops by what the export says; null where the base says it."""
    conversation_sizes: list[int | None] = []
    """Number of tokens of each conversation, from an engine that counts them but does not give their ids."""
    number_format: str | None = None
    """The coarsest that it computes in, where that is not float32."""
    milliseconds: FiniteFloat | None = None
    """The median of what a reply took, in an engine that measures it."""


@dataclass(frozen=True)
class EngineFailure:
    why: str
    """One sentence without a full stop."""
    refused: bool = True
    """Whether the engine itself gave up on the export, and not this machine on the engine."""


def interpreters(interpreters_named: Sequence[Path | str] = ()) -> list[str]:
    """The given interpreters, those of the environment variable, and our own; none where the variable is empty."""
    missing = [str(one) for one in interpreters_named if not os.access(one, os.X_OK)]
    if missing:
        raise ConfigError(
            [f"--engine-python {one}: there is no interpreter. Give the path of a python." for one in missing]
        )
    named = os.environ.get(INTERPRETERS)
    more = [one for one in (named or "").split(os.pathsep) if one]
    own = [] if named == "" and not interpreters_named else [sys.executable]
    return list(dict.fromkeys([*map(str, interpreters_named), *more, *own]))


def engines_for(format: str, pythons: Sequence[str]) -> list[tuple[Package, str]]:
    """Each engine that reads this format and is here, with the first interpreter that has it."""
    packages = [one.package for one in ENGINES if one.package is not None and format in one.package.formats]
    names = sorted({name for one in packages for name in one.modules})
    having = {python: _modules_of(python, names) for python in pythons} if packages else {}
    first = [(one, next((each for each in pythons if having[each].issuperset(one.modules)), None)) for one in packages]
    return [(one, python) for one, python in first if python is not None]


def _modules_of(python: str, names: Sequence[str]) -> set[str]:
    """Which modules an interpreter has, without importing them."""
    if python == sys.executable:
        return {name for name in names if find_spec(name) is not None}
    program = "import sys, importlib.util as u; print(*[n for n in sys.argv[1:] if u.find_spec(n)])"
    try:
        done = subprocess.run(
            [python, "-E", "-c", program, *names], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return set()
    return set(done.stdout.split()) & set(names)


def ask(
    engine: Package, python: str, request: dict[str, Any], seconds: float = SECONDS
) -> EngineReplies | EngineFailure:
    """Run it to its end. Whatever goes wrong there is an EngineFailure here."""
    words = [python, *(() if python == sys.executable else ("-E",)), "-s", str(CHILD), engine.file]
    text = json.dumps({"threads": usable_cores(), **request})
    try:
        done = subprocess.run(
            words, input=text, capture_output=True, text=True, timeout=seconds, check=False, env=_environment(),
            encoding="utf-8", errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return EngineFailure(f"{engine.name} did not finish in {seconds:,.0f} s", refused=False)
    except OSError as error:
        return EngineFailure(f"{python} cannot be run ({error.strerror})", refused=False)
    return _read(engine.name, done, len(request["questions"]))


def _environment() -> dict[str, str]:
    """No engine reaches for the network by itself."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return os.environ | quiet | {"TOKENIZERS_PARALLELISM": "false", "PYTHONIOENCODING": "utf-8"}


def _read(name: str, done: subprocess.CompletedProcess[str], count: int) -> EngineReplies | EngineFailure:
    if done.returncode < 0:
        killed = done.returncode == -9
        ended = (
            "was ended by the system, perhaps for want of memory" if killed else f"crashed (signal {-done.returncode})"
        )
        return EngineFailure(f"{name} {ended}", refused=not killed)
    try:
        reply = json.loads(done.stdout[:LONGEST_REPLY])
    except ValueError:
        last = (done.stderr.strip() or done.stdout.strip() or "nothing was printed").splitlines()[-1]
        return EngineFailure(f"{name} ended without a reply ({one_line(last, LONGEST_REASON)})")
    if isinstance(reply, dict) and isinstance(reply.get("error"), str):
        why = one_line(reply["error"], LONGEST_REASON).rstrip(".")
        return EngineFailure(why, refused=False) if reply.get("unreachable") else EngineFailure(f"{name} says: {why}")
    try:
        replies = EngineReplies.model_validate(reply)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return EngineFailure(f"{name} gave a reply that is not one ({where}: {first['msg']})")
    if len(replies.replies) != count:
        return EngineFailure(f"{name} answered {len(replies.replies)} of {count} questions")
    return replies
