"""A finished run, or an adapter's folder, loaded: a tuned model that can be its base too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from rankwise.base.beside import other_tokens, templates_in
from rankwise.base.loaded import LoadedModel
from rankwise.config.data import DataConfig
from rankwise.config.generation import GenerationConfig
from rankwise.config.models import ModelConfig
from rankwise.errors import DataError, RunError
from rankwise.inference.classify import Prediction, TaggedText, predictions, tag_probabilities, tagged_text
from rankwise.inference.decoding import Answer, TextCallback
from rankwise.inference.generate import answer
from rankwise.methods.artifact import Artifact, open_artifact
from rankwise.methods.registry import method_of
from rankwise.methods.trainable import Trainable
from rankwise.objectives.image_classification import ImageClassification
from rankwise.objectives.objective import Classifier, Objective, classifier
from rankwise.rows.images.encode import ImageEncoder, PixelFile
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.encode_tags import Text, encode_words, text_of
from rankwise.rows.text.encode_texts import encode_texts
from rankwise.rows.text.example import BREAK, Example, Message
from rankwise.rows.text.targets import tagged_in
from rankwise.rows.text.tokenize import Tokens
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.records import Callback, WarningMessage, silent
from rankwise.system.cache import cache_folder

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

    def check_generates(self) -> None:
        """RunError where the model is a classifier."""
        if self.objective.targets is not None:
            raise RunError(
                f"{self.artifact.described} is a classifier, which generates no text. Use rankwise predict for its "
                "classes or numbers, and rankwise evaluate to measure it."
            )

    def check_continues(self, what: str) -> None:
        """RunError where the model does not continue a text, which `what` needs."""
        self.check_generates()
        if self.model.encoder_decoder:
            raise RunError(
                f"{what} measures how a model continues a text, and {self.artifact.described} is an encoder with a "
                "decoder, which writes answers to single texts. Use rankwise evaluate to measure it."
            )

    @property
    def classifier(self) -> Classifier:
        """The objective of a classifier; RunError where the model is a language model."""
        if (objective := classifier(self.objective)) is None:
            raise RunError(
                f"{self.artifact.described} is a language model, not a classifier. Use rankwise generate for answers."
            )
        return objective

    def rows_of(self, texts: Sequence[tuple[str, str]]) -> tuple[list[Tokens], dict[int, str]]:
        """Texts for a classifier, each with a second text beside it or "", and what is wrong with some of them, by
        position. A text that is too long is cut if the run's rows were, and is a problem if they were left out."""
        _ = self.classifier
        rows = encode_texts(self.model.tokenizer, texts, self._cut)
        return rows, self._too_long(dict(enumerate(rows)))

    @property
    def _data(self) -> DataConfig:
        run = self.artifact.run
        return DataConfig(path="rows") if run is None else run.experiment.data

    @property
    def _limit(self) -> int:
        """Tokens of the longest row."""
        return min(self._data.max_length, self.model.context_length or self._data.max_length)

    @property
    def _cut(self) -> int | None:
        """The length that longer texts are cut to; None where they are problems."""
        return self._limit if self._data.too_long == "truncate" else None

    def _too_long(self, rows: Mapping[int, Tokens]) -> dict[int, str]:
        return {
            at: f"has {len(row.ids):,} tokens, and the run's longest row may have {self._limit:,} (data.max_length, "
            "and the model's context). Shorten the text."
            for at, row in rows.items()
            if len(row.ids) > self._limit
        }

    def image_rows_of(self, examples: Sequence[Example]) -> tuple[list[Tokens], dict[int, str]]:
        """Images for a classifier, and what is wrong with some of them, by position."""
        objective = self.objective
        if not isinstance(objective, ImageClassification):
            raise RunError(f"{self.artifact.described} was not trained on images, and reads texts.")
        outcomes = ImageEncoder(objective.processing, PixelFile(cache_folder() / "pixels")).encode(examples)
        problems = {at: outcome.problem for at, outcome in enumerate(outcomes) if outcome.problem is not None}
        nothing = Tokens((), ())
        return [outcome.sequences[0] if outcome.sequences else nothing for outcome in outcomes], problems

    @property
    def tags_words(self) -> bool:
        targets = self.objective.targets
        return targets is not None and targets.form == "tags"

    def tag(
        self, examples: Sequence[Example], done: Callable[[int], None] | None = None
    ) -> tuple[dict[int, TaggedText], dict[int, str]]:
        """The spans of each text, and what is wrong with the others, both by position. A text that is too long is cut
        if the run's rows were, and is a problem if they were left out."""
        classifier, texts, problems = self.classifier, dict[int, Text](), dict[int, str]()
        for at, example in enumerate(examples):
            try:
                texts[at] = text_of(example)
            except DataError as error:
                problems[at] = str(error)
        encoded = dict(zip(texts, encode_words(self.model.tokenizer, list(texts.values()), self._cut), strict=True))
        problems |= {
            at: f"{examples[at].where}: {why}"
            for at, why in self._too_long({at: one.tokens for at, one in encoded.items()}).items()
        }
        fitting = {at: one for at, one in encoded.items() if at not in problems}
        rows = [one.tokens for one in fitting.values()]
        shares = tag_probabilities(classifier, self.model.module, rows, done)
        tagged = {
            at: tagged_text(classifier.targets, texts[at], one, part, given=tagged_in(examples[at]).given)
            for (at, one), part in zip(fitting.items(), shares, strict=True)
        }
        return tagged, problems

    @property
    def reads_images(self) -> bool:
        return self.model.processing is not None

    def classify(self, rows: Sequence[Tokens], done: Callable[[int], None] | None = None) -> list[Prediction]:
        """One prediction for each encoded row; `done` is told how many there are so far."""
        return predictions(self.classifier, self.model.module, rows, done)

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
        self.check_generates()
        for message in messages:
            try:
                message.whole.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"the {SPOKEN[message.role]} is not UTF-8 text (character {error.start}).") from None
            if BREAK in message.whole:
                raise DataError(
                    f"the {SPOKEN[message.role]} contains the noncharacter U+FDD0, which text should not contain."
                )
        with self.base(base):
            return answer(self.model, messages, spec, on_text)


def load_tuned(
    name: str | Path | Artifact, callback: Callback = silent, *, force_base: bool = False, force_result: bool = False,
    trust_code: str | None = None, base_model: str | None = None, spec: ModelConfig | None = None,
) -> TunedModel:  # fmt: skip
    """Load a run by its name or folder, or an adapter by its folder. The base is the one that it was trained on, or is
    refused, and so is a run's result that is not what training wrote; `base_model` names another place for the base.
    `spec` is the method's `model_of` with another number format or device."""
    artifact = name if isinstance(name, Artifact) else open_artifact(
        str(name), callback, force_result=force_result, base_model=base_model, trust_code=trust_code
    )  # fmt: skip
    method = method_of(artifact.config)
    model, trainable = method.load(artifact, spec or method.model_of(artifact), callback, force_base=force_base)
    data_report = artifact.data_report
    if data_report is not None and data_report.template is not None:
        model = model.with_template(ChatTemplate.of_data_report(model.tokenizer, data_report.template))
    elif artifact.run is None and model.text is not None:
        template = with_own_template(artifact.folder, model.tokenizer, model.source.folder, model.template, callback)
        model = model if template is model.template else model.with_template(template)
    return TunedModel(artifact, model, trainable, None if data_report is None else data_report.system)


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
