"""A conversation with a run's model, its base, or both at once, each with its own memory of what it said."""

from __future__ import annotations

from dataclasses import dataclass, field

from rankwise.config.generation import GenerationConfig
from rankwise.errors import ConfigError
from rankwise.inference.decoding import Answer, TextCallback
from rankwise.inference.tuned_model import TunedModel, load_tuned
from rankwise.text.example import Message

__all__ = ["Chat", "load_tuned"]


@dataclass
class Chat:
    """`sides` maps the name of a speaker ("adapted", "base") to what it has heard and said."""

    asked: TunedModel
    spec: GenerationConfig
    sides: dict[str, list[Message]]
    said: list[dict[str, str]] = field(default_factory=list)
    """Every turn so far: "user", each side that answered, and why each answer ended (`SIDE_stopped`)."""

    @classmethod
    def begin(cls, asked: TunedModel, spec: GenerationConfig, *, base: bool, both: bool, system: str | None) -> Chat:
        if base and both:
            raise ConfigError(["--base asks the base alone and --both asks it too; give one of them."])
        names = ("adapted", "base") if both else ("base",) if base else ("adapted",)
        return cls(asked, spec, {name: asked.opening(system) for name in names})

    def ask(self, text: str) -> None:
        """Begin a turn, which each side then answers."""
        self.said.append({"user": text})

    def answer(self, side: str, on_text: TextCallback | None = None) -> Answer:
        """One side's answer to the turn that was begun. A turn that it cannot answer it does not remember."""
        text = self.said[-1]["user"]
        history = [*self.sides[side], Message("user", text)]
        spec = self.spec.model_copy(update={"seed": self.spec.seed + len(self.said) - 1})
        answer = self.asked.answer(history, spec, base=side == "base", on_text=on_text)
        self.sides[side] = [*history, Message("assistant", answer.text)]
        self.said[-1] |= {side: answer.text, f"{side}_stopped": answer.stopped}
        return answer

    def turns(self) -> list[dict[str, str]]:
        """What `rankwise chat --json` prints as `turns`: those that anybody answered."""
        return [turn for turn in self.said if len(turn) > 1]

    @property
    def system(self) -> str | None:
        """The system message, which all sides share."""
        first = next(iter(next(iter(self.sides.values()))), None)
        return first.content if first is not None and first.role == "system" else None

    def set_system(self, text: str | None) -> None:
        """From the next turn on; what was said so far stays. None: there is none."""
        before = [Message("system", text)] if text else []
        self.sides = {
            name: [*before, *(message for message in history if message.role != "system")]
            for name, history in self.sides.items()
        }

    def forget(self) -> None:
        """Begin again, keeping the system message."""
        self.sides = {
            name: [message for message in history if message.role == "system"] for name, history in self.sides.items()
        }
