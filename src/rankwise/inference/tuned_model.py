"""Ask a finished run, or an adapter's folder, or the base that it began with: what `generate` and `chat` share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from rankwise.adapters.tuned import Tuned
from rankwise.config.generation import GenerationConfig
from rankwise.config.models import ModelConfig
from rankwise.errors import DataError, ModelError
from rankwise.inference.decoding import Answer, TextCallback
from rankwise.inference.generate import answer
from rankwise.methods.methods import model_of, tuned_of
from rankwise.methods.opening import Opened, open_tuned
from rankwise.models.beside import other_tokens, templates_in
from rankwise.models.loaded import LoadedModel
from rankwise.models.loading import load_unchecked
from rankwise.runs.records import Callback, WarningMessage, silent
from rankwise.text.chat_template import ChatTemplate
from rankwise.text.example import BREAK, Message

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
        self,
        messages: Sequence[Message],
        spec: GenerationConfig,
        *,
        base: bool = False,
        on_text: TextCallback | None = None,
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
            return answer(self.model, messages, spec, on_text)


def open_for_asking(
    run: str | Opened, callback: Callback = silent, *, force_base: bool = False, force_result: bool = False,
    trust_code: str | None = None, base_model: str | None = None, held: ModelConfig | None = None,
) -> Asked:  # fmt: skip
    """Load what a run, or an adapter's folder, needs to answer. The base is the one that it was trained on, or is
    refused, and so is a run's result that is not what training wrote; `base_model` names another place for the base.
    `held` says in which number format and where the model is held."""
    opened = run
    if not isinstance(opened, Opened):
        opened = open_tuned(opened, callback, force_result=force_result, base_model=base_model, trust_code=trust_code)
    model = _loaded(opened, held or model_of(opened), callback)
    tuned = tuned_of(opened, model, callback, force_base=force_base)
    data_report = opened.data_report
    if data_report is not None and data_report.template is not None:
        model = replace(model, template=ChatTemplate.of_data_report(model.tokenizer, data_report.template))
    elif opened.run is None:
        model = _with_what_lies_beside(opened.folder, model, callback)
    return Asked(model, tuned, None if data_report is None else data_report.system)


def _loaded(opened: Opened, spec: ModelConfig, callback: Callback) -> LoadedModel:
    try:
        return load_unchecked(spec, callback)
    except ModelError as error:
        if type(error) is not ModelError or not opened.is_adapter:
            raise
        raise ModelError(f"{error} It is the base model of {opened.called}; --base-model gives another one.") from None


def _with_what_lies_beside(folder: Path, model: LoadedModel, callback: Callback) -> LoadedModel:
    """Somebody else's adapter was trained with the template in its folder, if there is one."""
    if (other := other_tokens(folder, model.tokenizer, model.source.folder)) is not None:
        callback(
            WarningMessage(f"{folder} has another tokenizer than its base model: {other}. The base model's is used")
        )
    sources = templates_in(folder)
    if not sources:
        return model
    return replace(model, template=ChatTemplate(model.tokenizer, sources, "model"))
