"""One answer from a run's model, its base, or both; or a conversation, in which each has its own history."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rankwise.config.validation import GenerationConfig
from rankwise.errors import ConfigError, DataError
from rankwise.inference.decoding import Answer, TextCallback
from rankwise.inference.tuned_model import TunedModel, load_tuned
from rankwise.methods.artifact import Opening, opening_in
from rankwise.objectives.registry import text_objective
from rankwise.rows.text.example import Message
from rankwise.runs.records import Callback, silent

__all__ = ["Chat", "Generated", "generate", "load_tuned"]


@dataclass(frozen=True)
class Generated:
    prompt: str
    adapted: Answer | None
    base: Answer | None

    def summary(self) -> dict[str, Any]:
        """What `rankwise generate --json` prints."""
        shown: dict[str, Any] = {"prompt": self.prompt}
        for key, given in (("answer", self.adapted), ("base_answer", self.base)):
            if given is not None:
                shown[key] = given.text
                shown[f"{key}_tokens"] = given.tokens
                shown[f"{key}_stopped"] = given.stopped
                shown[f"{key}_seconds"] = round(given.seconds, 3)
        return shown


def generate(
    run: str | os.PathLike[str] | TunedModel,
    prompt: str,
    config: GenerationConfig | None = None,
    *,
    system: str | None = None,
    context: str = "",
    base: bool = False,
    both: bool = False,
    on_text: TextCallback | None = None,
    callback: Callback = silent,
    **more: Any,
) -> Generated:
    """Generate one answer with a run (by name), an adapter (by folder) or an already loaded model. `system` replaces
    the system message from training; `context` is extra input, like Alpaca's input or Dolly's context. `more` takes
    generation settings, instead of a `config`, and how to open the run (`open_artifact`)."""
    config, opening = config_in(more, config, generate)
    if not prompt.strip():
        raise DataError("the prompt is empty.")
    check_models(base, both)
    asked = run if isinstance(run, TunedModel) else load_tuned(run, callback, **opening)
    messages = [*asked.opening(system), Message("user", prompt, context)]
    adapted = None if base else asked.answer(messages, config, on_text=on_text)
    of_base = asked.answer(messages, config, base=True, on_text=on_text if base else None) if base or both else None
    return Generated(prompt, adapted, of_base)


def config_in(
    more: Mapping[str, Any], config: GenerationConfig | None, function: Callable[..., Any]
) -> tuple[GenerationConfig, Opening]:
    """The settings of generation among keyword arguments, and the others, which say how a run is opened."""
    settings = {name: value for name, value in more.items() if name in GenerationConfig.model_fields}
    if config is not None and settings:
        raise ConfigError([f"{', '.join(settings)}: give settings of generation as keywords or as a config, not both."])
    others = {name: value for name, value in more.items() if name not in settings}
    return config or GenerationConfig(**settings), opening_in(others, function)


def check_models(base: bool, both: bool) -> None:
    if base and both:
        raise ConfigError(["--base uses only the base model and --both uses both models; give one of them."])


@dataclass
class Chat:
    """A conversation. `histories` maps "adapted" and "base" to the messages of each model."""

    tuned: TunedModel
    config: GenerationConfig
    histories: dict[str, list[Message]]
    log: list[dict[str, str]] = field(default_factory=list)
    """Every turn so far: "user", the answer of each model, and why it ended (`NAME_stopped`)."""

    @classmethod
    def begin(cls, tuned: TunedModel, config: GenerationConfig, *, base: bool, both: bool, system: str | None) -> Chat:
        check_models(base, both)
        tuned.artifact.refuse("generating", '"…"')
        names = ("adapted", "base") if both else ("base",) if base else ("adapted",)
        return cls(tuned, config, {name: tuned.opening(system) for name in names})

    def ask(self, text: str) -> None:
        """Begin a turn, which each model then answers."""
        self.log.append({"user": text})

    def answer(self, name: str, on_text: TextCallback | None = None) -> Answer:
        """Generate one model's answer to the current turn. A failed turn is not added to its history."""
        text = self.log[-1]["user"]
        history = text_objective(self.tuned.model).text_writer.heard([*self.histories[name], Message("user", text)])
        spec = self.config.model_copy(update={"seed": self.config.seed + len(self.log) - 1})
        answer = self.tuned.answer(history, spec, base=name == "base", on_text=on_text)
        self.histories[name] = [*history, Message("assistant", answer.text)]
        self.log[-1] |= {name: answer.text, f"{name}_stopped": answer.stopped}
        return answer

    def turns(self) -> list[dict[str, str]]:
        """Return the turns with an answer, which `rankwise chat --json` prints as `turns`."""
        return [turn for turn in self.log if len(turn) > 1]

    @property
    def system(self) -> str | None:
        """The system message, which all models share."""
        first = next(iter(next(iter(self.histories.values()))), None)
        return first.content if first is not None and first.role == "system" else None

    def set_system(self, text: str | None) -> None:
        """Set the system message from the next turn on, or remove it; earlier messages stay."""
        before = [Message("system", text)] if text else []
        self.histories = {
            name: [*before, *(message for message in history if message.role != "system")]
            for name, history in self.histories.items()
        }

    def forget(self) -> None:
        """Clear the histories, keeping the system message."""
        self.histories = {
            name: [message for message in history if message.role == "system"]
            for name, history in self.histories.items()
        }
