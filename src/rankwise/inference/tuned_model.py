"""A finished run, or an adapter's folder, loaded: a tuned model that can be its base too."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Unpack

from rankwise.base.beside import other_tokens, templates_in
from rankwise.base.loaded import LoadedModel
from rankwise.base.precision import multiplies_int8
from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.config.validation import GenerationConfig
from rankwise.errors import DataError, RunError
from rankwise.inference.decoding import Answer, TextCallback
from rankwise.inference.generate import answer
from rankwise.kernels.quantized.formats import Int8, use_int8_products, weights_for_int8
from rankwise.methods.artifact import Artifact, Opening, open_artifact
from rankwise.methods.loading import result_of
from rankwise.methods.trainable import Trainable
from rankwise.objectives.classifier import Classifier
from rankwise.objectives.objective import Objective
from rankwise.objectives.predictions import Longest, Prediction
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import BREAK, Example, Message
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.records import Callback, WarningMessage, silent
from rankwise.system.memory import available_memory

SPOKEN = {"system": "system message", "user": "prompt", "assistant": "answer"}


@dataclass(frozen=True)
class TunedModel:
    """For as many prompts as there are, to the tuned model or to its base."""

    artifact: Artifact
    model: LoadedModel
    trainable: Trainable
    system: str | None
    """The system message that the run's rows were trained with."""

    def base(self, active: bool = True) -> AbstractContextManager[None]:
        """Inside, `model` is the untouched base, bit for bit; or still the tuned model where this is not `active`."""
        return self.trainable.base() if active else nullcontext()

    @property
    def objective(self) -> Objective:
        """What the model was trained for."""
        return self.artifact.objective

    @property
    def classifier(self) -> Classifier:
        """The objective of a classifier; RunError where the model is a language model."""
        if (classifier := self.objective.classifier) is None:
            raise RunError(
                f"{self.artifact.described} is a language model, not a classifier. Use rankwise generate for answers."
            )
        return classifier

    def predict(
        self, rows: Sequence[Example], done: Callable[[int], None] | None = None
    ) -> tuple[dict[int, Prediction], dict[int, str]]:
        """What a classifier says of rows, and what is wrong with the others, both by position."""
        return self.classifier.predictions(self.model, rows, self.longest, done)

    @property
    def longest(self) -> Longest:
        run = self.artifact.run
        data = DataConfig(path="rows") if run is None else run.experiment.data
        most = min(data.max_length, self.model.context_length or data.max_length)
        return Longest(most, cuts=data.too_long == "truncate")

    def constrained(self, config: GenerationConfig) -> GenerationConfig:
        """These settings, with the constraint of the run's rows where they ask for the run's own."""
        return config.model_copy(update={"constraint": self.artifact.held_to(config.constraint)})

    def opening(self, system: str | None) -> list[Message]:
        """How a conversation begins: with `system`, or with what the run's rows began with."""
        spoken = self.system if system is None else system
        return [Message("system", spoken)] if spoken else []

    def answer(
        self,
        messages: Sequence[Message],
        config: GenerationConfig,
        *,
        base: bool = False,
        on_text: TextCallback | None = None,
    ) -> Answer:
        """One answer to a conversation, from the tuned model or the untouched base."""
        self.artifact.refuse("generating", quote(messages[-1].text))
        for message in messages:
            try:
                message.text.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"the {SPOKEN[message.role]} is not UTF-8 text (character {error.start}).") from None
            if BREAK in message.text:
                raise DataError(
                    f"the {SPOKEN[message.role]} contains the noncharacter U+FDD0, which text should not contain."
                )
        with self.base(base):
            return answer(self.model, messages, self.constrained(config), on_text)


def load_tuned(
    name: str | os.PathLike[str] | Artifact, callback: Callback = silent, *, config: ModelConfig | None = None,
    as_trained: bool = True, **opening: Unpack[Opening],
) -> TunedModel:  # fmt: skip
    """Load a run (name or folder) or an adapter (folder). The base model must be the one it was trained on, and a
    run's result must be what training wrote. `base_model` names another place to load the base model from. `config` is
    the artifact's `model` with another dtype or device. int8 matmul is used only with `as_trained`."""
    artifact = name if isinstance(name, Artifact) else open_artifact(name, callback, **opening)
    model, trainable = result_of(artifact.config).load(artifact, config or artifact.model, callback)
    if as_trained:
        _use_products(model, artifact, callback)
    data_report = artifact.data_report
    if data_report is not None and data_report.template is not None:
        model = model.with_template(ChatTemplate.of_data_report(model.tokenizer, data_report.template))
    elif artifact.run is None and model.text is not None:
        template = with_own_template(artifact.folder, model.tokenizer, model.source.folder, model.template, callback)
        model = model if template is model.template else model.with_template(template)
    return TunedModel(artifact, model, trainable, None if data_report is None else data_report.system)


def _use_products(model: LoadedModel, artifact: Artifact, callback: Callback) -> None:
    """Compute with products in int8, where the run had them, this processor is made for them, and copies have room."""
    products = None if artifact.run is None else artifact.run.manifest.products
    if products is None:
        return
    weights = weights_for_int8(model.module)
    copied = sum(weight.numel() for weight in weights.values() if not isinstance(weight.format, Int8))
    on_cpu = model.precision.device.type == "cpu"
    if weights and multiplies_int8() and on_cpu and 2 * copied <= available_memory():
        return use_int8_products(model.module, products.outliers)
    callback(WarningMessage(
        f"{artifact.described} was trained with products in int8, which are computed with unpacked weights here; that "
        f"changed the outputs of its base by {products.change:.1%}"
    ))  # fmt: skip


def with_own_template(
    folder: Path, tokenizer: HubTokenizer, base: Path, template: ChatTemplate, callback: Callback
) -> ChatTemplate:
    """Somebody else's adapter was trained with the template in its folder, if there is one; otherwise with `template`.
    `base` is the folder of the base model, whose tokenizer is used."""
    if (other := other_tokens(folder, tokenizer, base)) is not None:
        callback(
            WarningMessage(
                f"the tokenizer in {folder} differs from its base model's: {other}. The base model's tokenizer is used"
            )
        )
    sources = templates_in(folder)
    return ChatTemplate(tokenizer, sources, "model") if sources else template
