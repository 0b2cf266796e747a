"""Ask a finished run's model, or the base that it began with: what `generate` and `chat` share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from rankwise.adapters.tuned import Tuned
from rankwise.data.example import BREAK, Message
from rankwise.errors import DataError
from rankwise.models.chat_templates import ChatTemplate
from rankwise.models.decoding import Answer, Heard
from rankwise.models.generation import answer
from rankwise.models.loaded import LoadedModel
from rankwise.models.loading import load_unchecked
from rankwise.run.directory import RunDirectory, open_run
from rankwise.run.integrity import check_result
from rankwise.run.records import Announce, silent
from rankwise.spec.generation import GenerationSpec
from rankwise.spec.models import ModelSpec
from rankwise.verbs.methods import model_of, tuned_of

SPOKEN = {"system": "system message", "user": "prompt", "assistant": "answer"}


@dataclass(frozen=True)
class Asked:
    """A tuned model, which can be its base too, for as many questions as there are."""

    model: LoadedModel
    tuned: Tuned
    system: str | None
    """The system message that the run's rows were trained with."""

    def side(self, *, base: bool) -> AbstractContextManager[None]:
        """Inside, `model` is the untouched base, bit for bit, or else what the run made of it."""
        return self.tuned.disabled() if base else nullcontext()

    def opening(self, system: str | None) -> list[Message]:
        """How a conversation begins: with `system`, or with what the run's rows began with."""
        spoken = self.system if system is None else system
        return [Message("system", spoken)] if spoken else []

    def answer(
        self, messages: Sequence[Message], spec: GenerationSpec, *, base: bool = False, heard: Heard | None = None
    ) -> Answer:
        """One answer to a conversation, from the tuned model or the untouched base."""
        for message in messages:
            try:
                message.whole.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"the {SPOKEN[message.role]} is not UTF-8 text (character {error.start}).") from None
            if BREAK in message.whole:
                raise DataError(f"the {SPOKEN[message.role]} has the noncharacter U+FDD0, which no text should have.")
        with self.side(base=base):
            return answer(self.model, messages, spec, heard)


def open_for_asking(
    run_name: str, announce: Announce = silent, *, force_base: bool = False, force_result: bool = False,
    trust_code: str | None = None, held: ModelSpec | None = None,
) -> Asked:  # fmt: skip
    """Load what a run needs to answer. The base is the one that the run began with, or is refused, and so is a result
    that is not what training wrote. `held` says in which number format and where the model is held."""
    run = open_run(run_name)
    check_result(run, announce, force=force_result)
    return open_checked(run, announce, force_base=force_base, trust_code=trust_code, held=held)


def open_checked(
    run: RunDirectory, announce: Announce, *, force_base: bool, trust_code: str | None, held: ModelSpec | None
) -> Asked:
    """The same for a run whose result was checked."""
    model = load_unchecked(held or model_of(run, trust_code), announce)
    tuned = tuned_of(run, model, announce, trust_code, force_base=force_base)
    receipt = run.receipt()
    if receipt.template is not None:
        model = replace(model, template=ChatTemplate.of_receipt(model.tokenizer, receipt.template))
    return Asked(model, tuned, receipt.system)
