"""A conversation with a run's model, its base, or both at once, each with its own memory of what it said."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rankwise.data.example import Message
from rankwise.models.generation import Answer, Heard
from rankwise.spec.generation import GenerationSpec
from rankwise.verbs.ask import Asked


@dataclass
class Chat:
    """`sides` maps the name of a speaker ("adapted", "base") to what it has heard and said."""

    asked: Asked
    spec: GenerationSpec
    sides: dict[str, list[Message]] = field(default_factory=dict)

    @classmethod
    def begin(cls, asked: Asked, spec: GenerationSpec, *, base: bool, both: bool, system: str | None) -> Chat:
        spoken = asked.system if system is None else system
        names = ("adapted", "base") if both else ("base",) if base else ("adapted",)
        return cls(asked, spec, {name: [Message("system", spoken)] if spoken else [] for name in names})

    def say(self, side: str, text: str, heard: Heard | None = None) -> Answer:
        """One turn of one side. A turn that cannot be answered is not remembered."""
        history = [*self.sides[side], Message("user", text)]
        answer = self.asked.answer(history, self.spec, base=side == "base", heard=heard)
        self.sides[side] = [*history, Message("assistant", answer.text)]
        return answer

    def forget(self) -> None:
        """Begin again, keeping the system message."""
        self.sides = {
            name: [message for message in history if message.role == "system"] for name, history in self.sides.items()
        }

    def turns(self) -> list[dict[str, Any]]:
        """What `rankwise chat --json` prints as `turns`."""
        spoken = {name: [m for m in history if m.role != "system"] for name, history in self.sides.items()}
        first = next(iter(spoken.values()))
        return [
            {"user": first[place].content} | {name: said[place + 1].content for name, said in spoken.items()}
            for place in range(0, len(first), 2)
        ]
