"""The adapter that a training begins with: one of ours, as a run or a folder, or a folder in PEFT's format.

    name --open_artifact--> Artifact --read_adapter--> AdapterWeights --own_settings--> settings of the method
                                                             --FirstNumbers--> the adapter that the method attached

The method attaches an adapter of the same layers, ranks and scales as always, and the numbers are copied into it. So
the model that takes the first step is the adapter's, and its base stays untouched beside it. Of the settings, the
adapter brings its layers, ranks, scale and method: a value that was given and differs is refused, since it would make
another adapter of it. Dropout and the learning rate of B belong to the training and stay free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from rankwise.adapters.formats.dialects import read_adapter
from rankwise.adapters.formats.peft_config import commonest, pattern_of, tidy
from rankwise.adapters.formats.peft_reader import CONFIG
from rankwise.adapters.targets import host_view
from rankwise.adapters.weights import AdapterWeights
from rankwise.base.loaded import LoadedModel
from rankwise.config.adapters import HeadConfig, LoraConfig
from rankwise.config.expressions import matcher
from rankwise.config.method import MethodConfig
from rankwise.config.models import ModelConfig
from rankwise.errors import ConfigError, RankwiseError, some
from rankwise.methods.artifact import Artifact, open_artifact, stored_weights
from rankwise.methods.method import FirstNumbers
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

    def planned_settings(self, settings: MethodConfig) -> MethodConfig:
        """`settings` with those of the adapter as its files alone show them, for a forecast before the model is loaded.
        Where only the model tells what a file means, as they are."""
        try:
            return self._settings(settings, stored_weights(self.source, silent))
        except RankwiseError:
            return settings

    def numbers(self, model: nn.Module) -> FirstNumbers:
        """AdapterError where the adapter does not fit the model."""
        base = self.source.base_named
        weights = read_adapter(self.source.result, host_view(model))
        return FirstNumbers(weights, self.source.described, () if base is None else base.new_tokens)

    def final_settings(
        self, settings: MethodConfig, model: LoadedModel, callback: Callback, *, force_base: bool
    ) -> MethodConfig:
        """`settings` with those of the adapter, once the model is loaded. RunError where it is another base."""
        replace(self.source, force_base=force_base).check_base(model.source, "train on it", callback)
        weights = self.numbers(model.module).weights
        settled = self._settings(settings, weights)
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

    def _settings(self, settings: MethodConfig, weights: AdapterWeights) -> MethodConfig:
        return continued(settings, own_settings(weights), self.source.described)

    def _describe(self, config: MethodConfig, weights: AdapterWeights) -> str:
        ranked = weights.ranked
        ranks = [part.rank for part in ranked.values()]
        text = f"training continues {self.source.described}"
        if ranks:
            span = f"rank {ranks[0]}" if min(ranks) == max(ranks) else f"ranks {min(ranks)} to {max(ranks)}"
            text += f": {config.label} of {span} in {len(ranks)} layers, with its scale"
        if trained_as(self.source) == "AdaLoRA" or weights.settings["peft_type"] == "ADALORA":
            text += "; AdaLoRA decided these ranks, which stay"
        empty = len(weights.factors) - len(ranked)
        return text + (f"; {empty} layers of rank 0 are left out" if empty else "")


def start_of(name: str | None, callback: Callback) -> Start | None:
    """What `adapter.start_from` names, or None. ConfigError where it is a model that was trained whole."""
    return None if name is None else Start(_adapter_named(name, callback))


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
    factors = weights.ranked
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
