"""The adapter that a training begins with: one of ours, as a run or a folder, or a folder in PEFT's format.

    name --open_artifact--> Artifact --read_adapter--> AdapterWeights --own_settings--> settings of the run
                                                             --fill--> the adapter that the method attached

The method attaches an adapter of the same layers, ranks and scales as always, and the numbers are copied into it. So
the model that takes the first step is the adapter's, and its base stays untouched beside it. Of the settings, the
adapter brings its layers, ranks, scale and method: a value that was given and differs is refused, since it would make
another adapter of it. Dropout and the learning rate of B belong to the training and stay free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from rankwise.adapters.formats.dialects import read_adapter
from rankwise.adapters.formats.peft import copy_into
from rankwise.adapters.formats.peft_config import commonest, pattern_of, tidy
from rankwise.adapters.formats.peft_reader import CONFIG
from rankwise.adapters.set import AdapterSet
from rankwise.adapters.targets import host_view
from rankwise.adapters.weights import AdapterWeights, Factors
from rankwise.base.loaded import LoadedModel
from rankwise.config.adapters import HeadConfig, LoraConfig
from rankwise.config.experiment import Experiment
from rankwise.config.expressions import matcher
from rankwise.config.method import MethodConfig
from rankwise.config.models import ModelConfig
from rankwise.errors import AdapterError, ConfigError, RankwiseError, some
from rankwise.methods.artifact import Artifact, open_artifact, stored_weights
from rankwise.runs.data_report import DATA_REPORT
from rankwise.runs.lineage import Round
from rankwise.runs.records import Callback, StatusMessage, WarningMessage, silent
from rankwise.runs.row_facts import Learned
from rankwise.system.files import sha256_of

OF_TRAINING = frozenset({"dropout", "b_rate"})
"""Settings that leave the adapter itself as it is."""
WAY_OUT = (
    "Leave these settings out, since the adapter brings its own. For other values, begin a new adapter without --from, "
    "or merge this one into its base first (rankwise export RUN --to FOLDER --format merged)."
)
SAME_SCALE = 1e-9
"""How much the scale that a run records may differ from the adapter's, which some programs divide by rank + 1e-5."""


def continued(settings: MethodConfig, adapter_settings: MethodConfig, described: str) -> MethodConfig:
    """The settings `adapter_settings` of an adapter with what `settings` chooses for its training.

    `described` names the adapter in messages. ConfigError lists every setting of `settings` that contradicts it.
    """
    chosen = settings.model_fields_set - {"start_from"}
    if type(settings) not in (type(adapter_settings), LoraConfig):
        chosen |= {"method"}
    values = {
        name: (getattr(settings, name), getattr(adapter_settings, name, None)) for name in sorted(chosen - OF_TRAINING)
    }
    if problems := [
        f"adapter.{name} is {_listed(value)}, but the adapter has {_actual(name, adapter_settings)}."
        for name, (value, actual) in values.items()
        if value != actual and not (name == "targets" and actual and _same_layers(value, actual))
    ]:
        problems[-1] += f" {WAY_OUT}"
        raise ConfigError([f"{described} is continued: {problems[0]}", *problems[1:]])
    free = {name: getattr(settings, name) for name in chosen & OF_TRAINING & type(adapter_settings).model_fields.keys()}
    return adapter_settings.model_copy(update={**free, "start_from": settings.start_from})


def _actual(name: str, adapter_settings: MethodConfig) -> str:
    if name not in type(adapter_settings).model_fields:
        return "no adapted layers"
    if name in ("layers", "method"):
        return "layers already" if name == "layers" else f"the method {getattr(adapter_settings, name)}"
    varied = (
        " at most, and other values in some layers"
        if name == "rank" and getattr(adapter_settings, "rank_pattern", ())
        else ""
    )
    return f"{_listed(getattr(adapter_settings, name))}{varied}"


def _listed(value: Any) -> str:
    return some(map(str, value), 4) if isinstance(value, tuple | list) else str(value)


def _same_layers(names: Sequence[str], paths: Sequence[str]) -> bool:
    """Whether each name means some of these layers, and each layer is meant."""
    meant = [matcher(name, "target") for name in names]
    return all(any(map(matches, paths)) for matches in meant) and all(
        any(matches(path) for matches in meant) for path in paths
    )


@dataclass(frozen=True)
class Start:
    """`source` is what the user named, opened."""

    source: Artifact

    @property
    def lineage(self) -> tuple[Round, ...]:
        """The rounds of the source, and the source as the last of them."""
        return (*self.source.lineage, round_of(self.source))

    def planned_settings(self, experiment: Experiment) -> Experiment:
        """The experiment with the adapter's settings as its files alone show them, for a forecast before the model is
        loaded. Where only the model tells what a file means, the experiment as it is."""
        try:
            return self._with_settings(experiment, stored_weights(self.source, silent))
        except RankwiseError:
            return experiment

    def weights(self, model: nn.Module) -> AdapterWeights:
        """AdapterError where the adapter does not fit the model."""
        return read_adapter(self.source.result, host_view(model))

    def final_settings(
        self, experiment: Experiment, model: LoadedModel, callback: Callback, *, force_base: bool
    ) -> Experiment:
        """The experiment with the adapter's settings, once the model is loaded. RunError where it is another base."""
        replace(self.source, force_base=force_base).check_base(model.source, "train on it", callback)
        weights = self.weights(model.module)
        settled = self._with_settings(experiment, weights)
        callback(StatusMessage(self._describe(settled, weights)))
        for note in weights.notes:
            callback(StatusMessage(note))
        return settled

    def check_targets(self, learned: Learned, callback: Callback) -> None:
        """ConfigError where a classifier's head would mean other classes than it was trained for, or none."""
        report, name = self.source.data_report, self.source.described
        if report is None:
            for unknown in learned.unrecorded:
                order = some(learned.names) or "that of a number"
                callback(WarningMessage(f"{name} does not record {unknown} {order}"))
            return
        before, now = report.learned.meaning, learned.meaning
        if before != now:
            raise ConfigError([
                f"{name} predicts {before}, but the training rows are for {now}. A continued head keeps its classes: "
                "give rows that have all of them and no others, or begin a new adapter without --from."
            ])  # fmt: skip

    def fill(self, adapters: AdapterSet, name: str = "default") -> None:
        """Copy the adapter's numbers into one that was attached with its settings."""
        weights = self.weights(adapters.model)
        live, given = adapters.adapters(name), _ranked(weights)
        self._check_layers({path: part.rank for path, part in live.items()}, weights)
        self._check_heads(adapters.trained_heads(name), weights)
        self._check_tokens(adapters, weights, name)
        for path, adapter in live.items():
            assert abs(adapter.scale - given[path].scale) <= SAME_SCALE * abs(given[path].scale), path
        copy_into(adapters, weights, name)

    def _with_settings(self, experiment: Experiment, weights: AdapterWeights) -> Experiment:
        own = own_settings(weights)
        settled = continued(experiment.adapter, own, self.source.described)
        return experiment.model_copy(update={"adapter": settled})

    def _check_layers(self, ranks: Mapping[str, int], weights: AdapterWeights) -> None:
        own = {path: part.rank for path, part in _ranked(weights).items()}
        if differing := [path for path in ranks.keys() | own.keys() if ranks.get(path) != own.get(path)]:
            raise AdapterError(
                f"{self.source.described} cannot be continued: its layers cannot be told apart by name in this model "
                f"({some(sorted(differing), 4)})."
            )

    def _check_heads(self, heads: Mapping[str, nn.Module], weights: AdapterWeights) -> None:
        live = {f"{path}.{own}" for path, head in heads.items() for own in head.state_dict()}
        unknown, missing = sorted(weights.heads.keys() - live), sorted(live - weights.heads.keys())
        if unknown:
            raise AdapterError(
                f"{self.source.described} cannot be continued: it has modules that were trained whole "
                f"({some(unknown, 4)}), and this training does not train them. Only the heads of classifiers are."
            )
        if missing:
            raise AdapterError(
                f"{self.source.described} cannot be continued: it has no trained weights for {some(missing, 4)}, which "
                "the base model lacks too."
            )

    def _check_tokens(self, adapters: AdapterSet, weights: AdapterWeights, name: str) -> None:
        live = {path: rows.ids for path, rows in adapters.token_rows(name).items()}
        if weights.tokens and live != {path: rows.ids for path, rows in weights.tokens.items()}:
            named = self.source.base_named.new_tokens if self.source.base_named is not None else ()
            raise AdapterError(
                f"{self.source.described} cannot be continued: it has trained rows of new tokens, and this training "
                f"has others or none. Set model.new_tokens to those of the adapter ({some(map(repr, named), 4)})."
            )

    def _describe(self, experiment: Experiment, weights: AdapterWeights) -> str:
        ranked, config = _ranked(weights), experiment.adapter
        ranks = [part.rank for part in ranked.values()]
        text = f"training continues {self.source.described}"
        if ranks:
            span = f"rank {ranks[0]}" if min(ranks) == max(ranks) else f"ranks {min(ranks)} to {max(ranks)}"
            text += f": {config.label} of {span} in {len(ranks)} layers, with its scale"
        if trained_as(self.source) == "AdaLoRA" or weights.settings["peft_type"] == "ADALORA":
            text += "; AdaLoRA decided these ranks, which stay"
        empty = len(weights.factors) - len(ranked)
        return text + (f"; {empty} layers of rank 0 are left out" if empty else "")


def start_of(experiment: Experiment, callback: Callback) -> Start | None:
    """What `adapter.start_from` names, or None. ConfigError where it is a model that was trained whole."""
    name = experiment.adapter.start_from
    if name is None:
        return None
    return Start(_adapter_named(name, callback))


def base_named_by(name: str) -> ModelConfig:
    """The base model of the adapter that a training begins with."""
    return _adapter_named(name, silent).base


def planned_with(settings: MethodConfig) -> MethodConfig:
    """The settings `settings` with those of the adapter that they name, from its files alone."""
    assert settings.start_from is not None, "there is an adapter to begin with"
    source = _adapter_named(settings.start_from, silent)
    return continued(settings, own_settings(stored_weights(source, silent)), source.described)


def _adapter_named(name: str, callback: Callback) -> Artifact:
    source = open_artifact(name, callback)
    if (refusal := source.why_not("continued", str(source.result))) is not None:
        raise ConfigError([refusal])
    return source


def own_settings(weights: AdapterWeights) -> LoraConfig | HeadConfig:
    """The settings by which a LoRA of these layers, ranks and scales is attached. A scale is alpha / rank, so another
    program's division by a root is in alpha."""
    factors = _ranked(weights)
    if not factors:
        return HeadConfig()
    ranks = {path: part.rank for path, part in factors.items()}
    alphas = {path: float(tidy(part.scale * part.rank)) for path, part in factors.items()}
    rank = max(ranks.values())
    alpha = commonest({path: alphas[path] for path in ranks if ranks[path] == rank})
    settings: dict[str, Any] = {
        "rank": rank, "alpha": alpha, "targets": tuple(factors), "dora": weights.is_dora,
        "rank_pattern": pattern_of({path: value for path, value in ranks.items() if value != rank}),
        "alpha_pattern": pattern_of({path: value for path, value in alphas.items() if value != alpha}),
        "dropout": float(weights.settings.get("lora_dropout", 0.0)),
    }  # fmt: skip
    return LoraConfig(**settings)


def _ranked(weights: AdapterWeights) -> dict[str, Factors]:
    """A layer of rank 0 changes nothing and has nothing to learn with."""
    return {path: part for path, part in weights.factors.items() if part.rank}


def trained_as(source: Artifact) -> str:
    return source.config.label if source.run is not None else "an adapter"


def round_of(source: Artifact) -> Round:
    """What the next rounds remember of this one."""
    run, base, report = source.run, source.trained_on, source.folder / DATA_REPORT
    results = None if run is None else run.manifest.results
    return Round(
        name=source.name, method=trained_as(source), sha256=contents_of(source.result),
        base=None if base is None else base.name, base_fingerprint=None if base is None else base.fingerprint,
        data_sha256=sha256_of(report) if report.is_file() else None,
        rows=None if source.data_report is None else source.data_report.used,
        steps=None if results is None else results.steps, ended=None if run is None else run.manifest.ended,
    )  # fmt: skip


def contents_of(path: Path) -> dict[str, str]:
    """The hashes of what a training reads of an adapter, which is a folder or a file."""
    files = [path] if path.is_file() else [one for one in sorted(path.iterdir()) if _is_read(one)]
    return {file.name: sha256_of(file) for file in files}


def _is_read(file: Path) -> bool:
    return file.is_file() and (file.name == CONFIG or file.suffix in (".safetensors", ".gguf"))


def changed_since(begun: Round, name: str) -> str | None:
    """A sentence where the adapter `name` is not what a run began with, as `begun` records it."""
    try:
        now = contents_of(_adapter_named(name, silent).result)
    except RankwiseError:
        return f'"{name}", the adapter that this run began with, is no longer there or cannot be read'
    return None if now == begun.sha256 else f'"{name}", the adapter that this run began with, has changed since'
