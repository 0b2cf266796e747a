"""One answer from a run's model, its base, or both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.config.generation import GenerationConfig
from rankwise.errors import ConfigError, DataError
from rankwise.inference.decoding import Answer, TextCallback
from rankwise.inference.tuned_model import TunedModel, load_tuned
from rankwise.rows.text.example import Message
from rankwise.runs.records import Callback, silent


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
    run: str | Path | TunedModel,
    prompt: str,
    spec: GenerationConfig | None = None,
    *,
    system: str | None = None,
    context: str = "",
    base: bool = False,
    both: bool = False,
    on_text: TextCallback | None = None,
    callback: Callback = silent,
    force_base: bool = False,
    force_result: bool = False,
    trust_code: str | None = None,
    base_model: str | None = None,
) -> Generated:
    """Ask a run by its name, an adapter by its folder, or one opened for asking already. `system` replaces the one the
    run was trained with; `context` is what the question is about, as Alpaca's rows have an input and Dolly's a context.
    """
    if not prompt.strip():
        raise DataError("the prompt is empty.")
    if base and both:
        raise ConfigError(["--base uses only the base model and --both uses both models; give one of them."])
    asked = (
        load_tuned(
            str(run),
            callback,
            force_base=force_base,
            force_result=force_result,
            trust_code=trust_code,
            base_model=base_model,
        )
        if isinstance(run, str | Path)
        else run
    )
    messages = [*asked.opening(system), Message("user", prompt, context)]
    wanted = spec or GenerationConfig()
    adapted = None if base else asked.answer(messages, wanted, on_text=on_text)
    of_base = asked.answer(messages, wanted, base=True, on_text=on_text if base else None) if base or both else None
    return Generated(prompt, adapted, of_base)
