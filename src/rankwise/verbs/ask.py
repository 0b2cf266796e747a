"""Put a finished run's adapter over its base model and ask either of them: what `generate` and `chat` share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from rankwise.adapters.adapter_set import AdapterSet
from rankwise.adapters.peft_format import read_peft
from rankwise.data.example import BREAK, Message
from rankwise.errors import DataError, RunError
from rankwise.models.chat_templates import ChatTemplate
from rankwise.models.generation import Answer, Heard, answer
from rankwise.models.loaded import LoadedModel
from rankwise.models.loading import load
from rankwise.run.directory import RunDirectory, open_run
from rankwise.run.records import Announce, silent
from rankwise.spec.generation import GenerationSpec
from rankwise.spec.models import ModelSpec

SPOKEN = {"system": "system message", "user": "prompt", "assistant": "answer"}


@dataclass(frozen=True)
class Asked:
    """A base model with its adapter, for as many questions as there are."""

    model: LoadedModel
    adapters: AdapterSet
    system: str | None
    """The system message that the run's rows were trained with."""

    def opening(self, system: str | None) -> list[Message]:
        """How a conversation begins: with `system`, or with what the run's rows began with."""
        spoken = self.system if system is None else system
        return [Message("system", spoken)] if spoken else []

    def answer(
        self, messages: Sequence[Message], spec: GenerationSpec, *, base: bool = False, heard: Heard | None = None
    ) -> Answer:
        """One answer to a conversation, from the adapted model or the untouched base."""
        for message in messages:
            try:
                message.whole.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"the {SPOKEN[message.role]} is not UTF-8 text (character {error.start}).") from None
            if BREAK in message.whole:
                raise DataError(f"the {SPOKEN[message.role]} has the noncharacter U+FDD0, which no text should have.")
        with self.adapters.disabled() if base else nullcontext():
            return answer(self.model, messages, spec, heard)


def base_of(run: RunDirectory, trust_code: str | None) -> ModelSpec:
    """A run's base model as it is loaded here: the device is this machine's own affair, and a run, which may be
    somebody else's, cannot say whose code to trust."""
    spec = run.experiment().model
    return spec.model_copy(update={"name": _base_name(run, spec.name), "device": "auto", "trust_code": trust_code})


def open_for_asking(
    run_name: str, announce: Announce = silent, *, force_base: bool = False, trust_code: str | None = None,
    base: ModelSpec | None = None,
) -> Asked:  # fmt: skip
    """Load what a run needs to answer, and make sure that its base is the one it was trained on."""
    run = open_run(run_name)
    model, trained_on = load(base or base_of(run, trust_code), announce), run.manifest().base_model
    if model.facts.fingerprint != trained_on.fingerprint and not force_base:
        raise RunError(
            f'run "{run_name}" was trained on {trained_on.name} from {trained_on.source} ({trained_on.fingerprint}); '
            f"the one found now, from {model.facts.source}, has other weights ({model.facts.fingerprint}). "
            "Use --force-base to lay the adapter over it all the same."
        )
    receipt = run.receipt()
    if receipt.template is not None:
        model = replace(model, template=ChatTemplate.of_receipt(model.tokenizer, receipt.template))
    return Asked(model, read_peft(model.module, run.adapter), receipt.system)


def _base_name(run: RunDirectory, name: str) -> str:
    """A relative path was written from the folder that holds `runs/`, which may not be the one we are in."""
    beside_runs = os.path.join(run.folder.absolute().parent.parent, name)  # noqa: PTH118  the name may be no path
    return beside_runs if not os.path.exists(name) and os.path.exists(beside_runs) else name  # noqa: PTH110
