"""What was learned, as it lies on the disk: the result of a finished run, or an adapter as a folder or file.

Both are opened here and are the same from there on. They differ in what is recorded: an adapter has no rows of its own,
its base model is the one that its files name, in PEFT's format or another tool's (adapters/formats/dialects.py), and
only a folder that rankwise wrote says which weights that was and by which template it was trained. PEFT's files
name the layers of the model themselves; those of other tools are read over the modules of the base model, which are
built without weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, Unpack

from rankwise.adapters.formats.dialects import detect
from rankwise.adapters.formats.peft_reader import CONFIG, peft_base
from rankwise.adapters.formats.tensors import SUFFIXES, refuse_pickle
from rankwise.adapters.weights import AdapterWeights, reported
from rankwise.base.beside import added_texts
from rankwise.base.gguf.header import is_gguf_adapter
from rankwise.base.loaded import check_base
from rankwise.base.skeleton import modules_without_weights
from rankwise.base.sources import Source
from rankwise.base.starters import STARTERS
from rankwise.config.adapters import Adapting, LoraConfig
from rankwise.config.data import Constrained
from rankwise.config.models import ModelConfig
from rankwise.errors import ConfigError, ModelError, RunError, did_you_mean
from rankwise.objectives.objective import Objective
from rankwise.objectives.registry import language_model, objective_for
from rankwise.runs.data_report import DATA_REPORT, DataReport
from rankwise.runs.directory import find_run
from rankwise.runs.integrity import check_folder, check_result
from rankwise.runs.lineage import LINEAGE, Lineage, Round
from rankwise.runs.manifest import TRAINING, AnchorFacts, BaseModelFacts, TrainingFacts
from rankwise.runs.own_files import read_json
from rankwise.runs.records import Callback, WarningMessage, silent
from rankwise.runs.row_facts import TargetFacts
from rankwise.runs.snapshot import RunSnapshot
from rankwise.system.foreign_json import read_json as read_foreign

BASE_FACTS = "base_model.json"
"""Beside an adapter that rankwise wrote: its base model's name, source and fingerprint."""


class BaseFacts(BaseModelFacts):
    """What lies in that file."""

    licence: str = "unknown"


def base_of(run: RunSnapshot, trust_code: str | None) -> ModelConfig:
    """The base model of a run, as it is loaded here: the device is this machine's own affair, and a run, which may be
    somebody else's, cannot decide whose code to trust."""
    spec = run.experiment.base
    changes = {"name": _base_name(run, spec.name), "device": "auto", "trust_code": trust_code, "sharded": False}
    return spec.model_copy(update=changes)


def _base_name(run: RunSnapshot, name: str) -> str:
    """A relative path was written from the folder that holds `runs/`, which may not be the one we are in."""
    beside_runs = os.path.join(run.folder.absolute().parent.parent, name)  # noqa: PTH118  the name may be no path
    return beside_runs if not os.path.exists(name) and os.path.exists(beside_runs) else name  # noqa: PTH110


MODEL_CONFIG = "config.json"
TASK = "SEQ_2_SEQ_LM"
"""PEFT's name for what an encoder with a decoder does."""


@dataclass(frozen=True)
class Artifact:
    name: str
    folder: Path
    """The run's, or the adapter's, which may be a file."""
    result: Path
    """The folder of the weights that were learned."""
    config: Adapting
    """The settings of the method. Of an adapter that rankwise did not train they are those of LoRA."""
    base_named: ModelConfig | None
    trained_on: BaseModelFacts | None
    """The base model. None where nobody recorded it."""
    data_report: DataReport | None
    run: RunSnapshot | None = None
    lineage: tuple[Round, ...] = ()
    """The rounds before it, where its training began with an adapter."""
    force_base: bool = False
    """Whether its base is used even if its weights have changed since the training."""

    @property
    def targets(self) -> TargetFacts | None:
        """What a classifier predicts; None for a language model."""
        return None if self.data_report is None else self.data_report.targets

    @cached_property
    def objective(self) -> Objective:
        """What it was trained for, by its data report, or for somebody else's adapter by the task that it names."""
        settings = self.result / CONFIG
        if self.data_report is None and settings.is_file() and read_foreign(settings).get("task_type") == TASK:
            return language_model(encoder_decoder=True)
        return objective_for(self.data_report)

    @property
    def anchor(self) -> AnchorFacts | None:
        """The text on which the run was held to its base."""
        return None if self.run is None else self.run.manifest.anchor

    @property
    def runs_own_code(self) -> bool:
        """Whether its base model comes with Python code, which only its own program runs."""
        return self.run is not None and self.run.experiment.model.trust_code is not None

    @property
    def described(self) -> str:
        """For messages."""
        if self.run is not None:
            return f'run "{self.name}"'
        settings = self.folder / CONFIG
        return str(settings if settings.is_file() else self.folder)

    def why_not(self, activity: str, value: str = "") -> str | None:
        """The sentence that refuses an activity, or a format of an export, to its method or its objective."""
        cannot = {**self.objective.words.cannot, **self.config.cannot}
        if activity not in cannot:
            return None
        return cannot[activity].format(model=self.described, name=self.name, folder=self.folder, value=value)

    def held_to(self, constraint: Constrained) -> Constrained:
        """What answers are held to: what is asked for, or the constraint of the run's rows."""
        own = None if self.data_report is None else self.data_report.constraint
        return constraint if constraint != "own" else own or "none"

    def refuse(self, activity: str, value: str = "") -> None:
        """RunError where it is not used so."""
        if (sentence := self.why_not(activity, value)) is not None:
            raise RunError(sentence)

    @property
    def base(self) -> ModelConfig:
        """The model that was adapted; ModelError where it is not named, or is a file that is not here."""
        if self.base_named is None:
            raise ModelError(f"{self.described} names no base model. Name it with --base-model.")
        name = self.base_named.name
        is_file = Path(name).is_absolute() or name.startswith((".", "~")) or name.lower().endswith(".gguf")
        if is_file and not os.path.exists(os.path.expanduser(name)):  # noqa: PTH110, PTH111  it may be no path
            raise ModelError(
                f'{self.described} names the base model "{name}", which was not found. Give its location with '
                "--base-model."
            )
        return self.base_named

    @property
    def model(self) -> ModelConfig:
        """The model to load: the base, or what was written of a model that was trained whole."""
        whole = self.config.artifact == "model"
        return ModelConfig(name=str(self.result), dtype="float32") if whole else self.base

    def check_base(self, source: Source, use: str, callback: Callback) -> None:
        """RunError where it was trained on another base, and a warning where nobody recorded on which. `use` is what
        the base is needed for, for the message."""
        if self.trained_on is None:
            callback(WarningMessage(
                f"{self.folder} does not record its base model's weights, so it is unknown whether "
                f"{source.name} from {source.where} is the right base model"
            ))  # fmt: skip
        elif not self.force_base:
            check_base(source, self.trained_on, self.described, use)


class Opening(TypedDict, total=False):
    """How an artifact is opened, as `open_artifact` takes it."""

    force_base: bool
    force_result: bool
    base_model: str | None
    trust_code: str | None


def opening_in(arguments: Mapping[str, Any], function: Callable[..., Any]) -> Opening:
    """The other keyword arguments of a function, which say how a run is opened; ConfigError where one does not."""
    names = (*(function.__kwdefaults__ or ()), *Opening.__annotations__)
    problems = [
        f"{name}={value!r}: {function.__name__} has no such argument.{did_you_mean(name, names)}"
        for name, value in arguments.items() if name not in Opening.__annotations__
    ]  # fmt: skip
    if problems:
        raise ConfigError(problems)
    opening: Any = arguments
    return opening


def open_artifact(
    name: str | os.PathLike[str], callback: Callback = silent, *, force_base: bool = False, force_result: bool = False,
    base_model: str | None = None, trust_code: str | None = None,
) -> Artifact:  # fmt: skip
    """A run by its name or folder, or an adapter by its folder or file. What lies in a run must be what training wrote
    there, or `force_result`. `base_model` replaces the base that it names, which must be the one that it was trained
    on, or `force_base`."""
    name = os.fspath(name)
    if find_run(name) is None and is_adapter(name):
        check_folder(Path(name), callback)
        opened = _of_folder(Path(name), trust_code)
    else:
        refuse_pickle(name)
        run = RunSnapshot.finished(name)
        check_result(run, callback, force=force_result)
        opened = artifact_of(run, trust_code)
    opened = replace(opened, force_base=force_base)
    if base_model is None:
        return opened
    named = opened.base_named or ModelConfig(name=base_model, trust_code=trust_code)
    return replace(opened, base_named=named.model_copy(update={"name": base_model, "revision": None}))


def find_artifact(name: str, callback: Callback = silent, **opening: Unpack[Opening]) -> Artifact | None:
    """Open an artifact as `open_artifact` does; None where `name` is neither a run nor an adapter."""
    if find_run(name) is None and not is_adapter(name):
        return None
    return open_artifact(name, callback, **opening)


def is_adapter(name: str) -> bool:
    """Whether `name` is an adapter's folder or file, or a pickled file, which is refused when it is opened."""
    if os.path.isfile(os.path.join(name, CONFIG)):  # noqa: PTH113, PTH118  is_file raises where a name is too long
        return True
    if not os.path.exists(name):  # noqa: PTH110
        return False
    path = Path(name)
    return _is_adapter_file(path) if path.is_file() else _is_other_folder(path)


def _is_adapter_file(file: Path) -> bool:
    kind = file.suffix.lower()
    return is_gguf_adapter(file) if kind == ".gguf" else kind == ".safetensors" or kind in SUFFIXES


def _is_other_folder(folder: Path) -> bool:
    if (folder / MODEL_CONFIG).is_file():
        return False
    try:
        return any(file.is_file() and _is_adapter_file(file) for file in folder.iterdir())
    except OSError:
        return False


def artifact_of(run: RunSnapshot, trust_code: str | None) -> Artifact:
    return Artifact(
        run.folder.name, run.folder, run.result, run.experiment.adapter, base_of(run, trust_code),
        trained_on=run.manifest.base_model, data_report=run.recorded_data, run=run, lineage=run.manifest.lineage,
    )  # fmt: skip


def _of_folder(folder: Path, trust_code: str | None) -> Artifact:
    data_report, base = folder / DATA_REPORT, recorded_base(folder)
    return Artifact(
        str(folder), folder, folder, LoraConfig(), _stored_as(_named_in(folder, trust_code), base), trained_on=base,
        data_report=read_json(data_report, DataReport) if data_report.is_file() else None,
        lineage=recorded_lineage(folder),
    )  # fmt: skip


def _stored_as(named: ModelConfig | None, base: BaseFacts | None) -> ModelConfig | None:
    """The base with its weights in as many bits as they were trained on."""
    if named is None or base is None or base.quantization not in ("nf4", "int8"):
        return named
    return named.model_copy(update={"quantize": base.quantization})


def recorded_base(folder: Path) -> BaseFacts | None:
    """As it lies beside an adapter that rankwise wrote."""
    file = folder / BASE_FACTS
    return read_json(file, BaseFacts) if file.is_file() else None


def recorded_training(folder: Path) -> TrainingFacts | None:
    """As it lies beside a result that rankwise wrote."""
    file = folder / TRAINING
    return read_json(file, TrainingFacts) if file.is_file() else None


def recorded_lineage(folder: Path) -> tuple[Round, ...]:
    """The rounds before this one, as they lie beside an adapter that rankwise wrote."""
    file = folder / LINEAGE
    return read_json(file, Lineage).rounds if file.is_file() else ()


def _named_in(folder: Path, trust_code: str | None) -> ModelConfig | None:
    """The base model that the files name. A starter is also found as the package index carries it."""
    dialect = detect(folder)
    name, revision, tokens = dialect.base, None, list[int]()
    if dialect.is_peft:
        name, revision, tokens = peft_base(dialect.source.folder)
    if not name:
        return None
    starter = next((one.name for one in STARTERS.values() if one.hub_id == name), None)
    if starter is not None and revision is None and not os.path.isdir(name):  # noqa: PTH112
        name = starter
    return ModelConfig(name=name, revision=revision, trust_code=trust_code, new_tokens=added_texts(folder, tokens))


def stored_weights(artifact: Artifact, callback: Callback) -> AdapterWeights:
    """What an artifact learned; ModelError where another tool's file needs a base model that nobody names."""
    dialect = detect(artifact.result)
    modules = None if dialect.is_peft else modules_without_weights(artifact.base, callback)
    return reported(dialect.read(modules), callback)
