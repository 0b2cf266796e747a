"""What is evaluated: a run beside its own base, an adapter's folder, a model, or a model against another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

from rankwise.config.models import ModelConfig
from rankwise.errors import ConfigError
from rankwise.evaluation.base_and_tuned import BaseAndTuned, base_and_tuned, of_two_models
from rankwise.evaluation.number_format import held_to_measure
from rankwise.inference.tuned_model import load_tuned
from rankwise.methods.artifact import Artifact, find_artifact
from rankwise.methods.registry import method_of
from rankwise.models.loaded import LoadedModel
from rankwise.models.sources import find
from rankwise.objectives.objective import Classifier, classifier
from rankwise.objectives.preference import Preference
from rankwise.objectives.registry import language_model
from rankwise.runs.records import Callback, StatusMessage, silent
from rankwise.runs.snapshot import RunSnapshot


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
    base_features: Callable[[], AbstractContextManager[LoadedModel]] | None = None
    """Gives the base of a classifier, whose head is untrained, so that only its features can be compared."""

    @property
    def preference(self) -> Preference | None:
        """How it was trained on pairs, if it was."""
        objective = None if self.artifact is None else self.artifact.objective
        return objective if isinstance(objective, Preference) else None

    @property
    def classifier(self) -> Classifier | None:
        objective = None if self.artifact is None else self.artifact.objective
        return classifier(objective)


def open_subject(
    target: str, against: str | None = None, *, base: bool = True, dtype: str = "auto", callback: Callback = silent,
    force_base: bool = False, force_result: bool = False, trust_code: str | None = None,
    base_model: str | None = None,
) -> Subject:  # fmt: skip
    artifact = find_artifact(target, callback, force_result=force_result, base_model=base_model, trust_code=trust_code)
    if artifact is None:
        if base_model is not None:
            raise ConfigError([f'--base-model {base_model}: "{target}" is not a run or an adapter\'s folder, so it has '
                             "no base model. Use --against to compare two models."])  # fmt: skip
        model = _loaded(held_to_measure(ModelConfig(name=target, trust_code=trust_code), dtype), callback)
        return (
            _beside(model, target, ModelConfig(name=against, trust_code=trust_code), dtype, callback)
            if against
            else Subject(target, model, None)
        )
    if against is not None:
        raise ConfigError(
            [f'"{target}" is a run or an adapter, which is compared with its own base; leave out --against.']
        )
    spec = held_to_measure(method_of(artifact.config).model_of(artifact), dtype)
    asked = load_tuned(artifact, callback, force_base=force_base, spec=spec)

    @contextmanager
    def without() -> Iterator[LoadedModel]:
        with asked.base():
            yield asked.model

    trained_on = artifact.trained_on or asked.model.facts
    own = Subject(artifact.name, asked.model, artifact.run, system=asked.system, artifact=artifact)
    if base and asked.objective.targets is not None:
        callback(StatusMessage("the base has no trained head, so this classifier is evaluated alone"))
    if not base or asked.objective.targets is not None:
        return replace(own, base_features=without if base else None)
    # a base that was forced upon the run need not be the one that it was trained on
    origin = find(artifact.base, silent).fingerprint if force_base else trained_on.fingerprint
    sides = None if asked.model.encoder_decoder else base_and_tuned(asked.trainable)
    return replace(own, against=trained_on.name, base=without, sides=sides, origin=origin)


def _loaded(spec: ModelConfig, callback: Callback) -> LoadedModel:
    """A model that writes texts."""
    return language_model(find(spec, callback).config).load(spec, callback)


def _beside(model: LoadedModel, target: str, against: ModelConfig, dtype: str, callback: Callback) -> Subject:
    other = _loaded(held_to_measure(against, dtype), callback)
    sides = None if model.encoder_decoder else of_two_models(other, model)
    return Subject(target, model, None, against.name, lambda: nullcontext(other), sides, other.facts.fingerprint)
