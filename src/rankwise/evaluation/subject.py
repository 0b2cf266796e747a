"""What is evaluated: a run beside its own base, an adapter's folder, a model, or a model against another.

Measures of forgetting compare the base and the tuned model as two functions from token ids to logits. The two are
either one model with and without its adapter, or two models in memory: a merged or fully fine-tuned model and its base.
Both receive the same ids in the same shapes, so comparing a model with itself gives bitwise equal logits.

On a CPU models are in float32 unless the user chooses another dtype: answers do not depend on the batch size and
measurements contain no bfloat16 rounding. So `evaluate` and `strength` report the same KL for the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Unpack

from torch import Tensor, nn

from rankwise.base.inspection import is_encoder_decoder
from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.base.sources import find
from rankwise.config.data import Constrained
from rankwise.config.models import ModelConfig
from rankwise.config.tasks import TaskConfig
from rankwise.errors import ConfigError, ModelError
from rankwise.forward.reference import every_logits
from rankwise.inference.tuned_model import load_tuned
from rankwise.methods.artifact import Artifact, Opening, find_artifact
from rankwise.methods.trainable import WithBase
from rankwise.objectives.objective import Objective
from rankwise.objectives.registry import language_model, text_objective
from rankwise.runs.records import Callback, StatusMessage, silent
from rankwise.runs.snapshot import RunSnapshot

Forward = Callable[[Tensor], Tensor]
"""Maps ids (T,) of one text to logits (T, V), without gradients."""
FORGETTING = "measured for forgetting"
"""By continuing running text; a reason why not is in the table of an objective."""


@dataclass(frozen=True)
class BaseAndTuned:
    base: Forward
    tuned: Forward


def forward_of(module: nn.Module) -> Forward:
    """Run the model in its state at the time of each call, including the adapters that are active then."""
    return partial(every_logits, module)


def base_and_tuned(tuned: WithBase) -> BaseAndTuned:
    """Use one model both as tuned and, with its training undone, as its own base."""
    as_tuned = forward_of(tuned.model)

    def base(ids: Tensor) -> Tensor:
        with tuned.base():
            return as_tuned(ids)

    return BaseAndTuned(base, as_tuned)


def of_two_models(base: LoadedModel, tuned: LoadedModel) -> BaseAndTuned:
    """Use two models in memory; refuse them if any id stands for different tokens."""
    words, others = base.tokenizer.hub.get_vocab(), tuned.tokenizer.hub.get_vocab()
    if base.vocabulary != tuned.vocabulary or words != others:
        differing = sorted((word for word in words | others if words.get(word) != others.get(word)), key=str)
        example = f'; "{differing[0]}" has different ids' if differing else ""
        raise ModelError(
            f"{tuned.source.name} has a different vocabulary ({tuned.vocabulary:,} tokens) from {base.source.name} "
            f"({base.vocabulary:,}){example}. Their likelihoods cannot be compared token by token: "
            "compare it with its own base."
        )
    return BaseAndTuned(forward_of(base.module), forward_of(tuned.module))


def held_to_measure(config: ModelConfig, dtype: str = "auto") -> ModelConfig:
    given = ModelConfig(name=config.name, dtype=dtype) if dtype != "auto" else None  # pyright: ignore[reportArgumentType]
    exact = "float32" if given is None and _on_processor(config) else config.dtype
    return config.model_copy(update={"dtype": given.dtype if given is not None else exact})


def _on_processor(config: ModelConfig) -> bool:
    from rankwise.base.precision import choose_precision

    return choose_precision(config).device.type == "cpu"


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and what it is held against: `base` gives that for as long as it is asked, `sides` both."""

    name: str
    model: LoadedModel
    run: RunSnapshot | None
    against: str | None = None
    base: Callable[[], AbstractContextManager[LoadedModel]] | None = None
    sides: BaseAndTuned | None = None
    origin: str | None = None
    """The fingerprint of the base of these sides."""
    system: str | None = None
    """The system message that the run's rows were trained with."""
    artifact: Artifact | None = None
    """The run, or the adapter's folder."""
    constraint: Constrained = "own"
    """What answers are held to."""
    base_features: Callable[[], AbstractContextManager[LoadedModel]] | None = None
    """Gives the base of a classifier, whose head is untrained, so that only its features can be compared."""

    @property
    def objective(self) -> Objective:
        """What it was trained for; a model that is no run writes texts."""
        return text_objective(self.model) if self.artifact is None else self.artifact.objective

    def refuse(self, activity: str, value: str) -> None:
        """ConfigError where it is not evaluated so."""
        if (why := self.objective.words.cannot.get(activity)) is not None:
            raise ConfigError([why.format(model=self.name, value=value)])

    def refuse_options(
        self, task: str | TaskConfig | None, text: str | None, blocks: int | None, score: object
    ) -> None:
        for name, value in (("--task", task), ("--text", text), ("--blocks", blocks), ("--score", score)):
            if value is not None:
                self.refuse(name, name)


def open_subject(
    target: str, against: str | None = None, *, base: bool = True, dtype: str = "auto", callback: Callback = silent,
    **opening: Unpack[Opening],
) -> Subject:  # fmt: skip
    artifact = find_artifact(target, callback, **opening)
    if artifact is None:
        trust_code = opening.get("trust_code")
        if (base_model := opening.get("base_model")) is not None:
            raise ConfigError([f'--base-model {base_model}: "{target}" is not a run or an adapter\'s folder, so it has '
                             "no base model. Use --against to compare two models."])  # fmt: skip
        model = _loaded(held_to_measure(ModelConfig(name=target, trust_code=trust_code), dtype), callback)
        return (
            _against(model, target, ModelConfig(name=against, trust_code=trust_code), dtype, callback)
            if against
            else Subject(target, model, None)
        )
    if against is not None:
        raise ConfigError(
            [f'"{target}" is a run or an adapter, which is compared with its own base; leave out --against.']
        )
    spec = held_to_measure(artifact.model, dtype)
    asked = load_tuned(artifact, callback, config=spec)

    @contextmanager
    def without() -> Iterator[LoadedModel]:
        with asked.base():
            yield asked.model

    trained_on = artifact.trained_on or asked.model.facts
    own = Subject(artifact.name, asked.model, artifact.run, system=asked.system, artifact=artifact)
    alone = asked.objective.words.cannot.get("compared with its base")
    if base and alone is not None:
        callback(StatusMessage(alone))
    if not base or alone is not None:
        return replace(own, base_features=without if base else None)
    # a base that was forced upon the run need not be the one that it was trained on
    origin = find(artifact.base, silent).fingerprint if artifact.force_base else trained_on.fingerprint
    sides = None if FORGETTING in own.objective.words.cannot else base_and_tuned(asked.trainable)
    return replace(own, against=trained_on.name, base=without, sides=sides, origin=origin)


def _loaded(config: ModelConfig, callback: Callback) -> LoadedModel:
    """A model that writes texts."""
    both = is_encoder_decoder(find(config, callback).config)
    return load(config, callback, language_model(both).kind)


def _against(model: LoadedModel, target: str, against: ModelConfig, dtype: str, callback: Callback) -> Subject:
    other = _loaded(held_to_measure(against, dtype), callback)
    sides = None if FORGETTING in text_objective(model).words.cannot else of_two_models(other, model)
    return Subject(
        name=target, model=model, run=None, against=against.name, base=lambda: nullcontext(other), sides=sides,
        origin=other.facts.fingerprint,
    )  # fmt: skip
