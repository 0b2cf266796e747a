"""Train from Python: `rankwise.train(model="smollm2-135m", data=rows)`.

Rows may be a path, a list of dicts, a pandas DataFrame or a `datasets.Dataset`; settings are keyword arguments. The run
is the same as that of the command line: a folder with its settings, data report, metrics, result and report.

`steps=20` is `training.steps`, and `rank=8` is `adapter.rank`: a keyword is a flag of `rankwise train` with underscores
(`validate_every=50`), or any other setting that only one section of the experiment has (docs/configuration.md lists
them). A setting whose name several sections have is written with its section: `validation={"steps": 50}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from rankwise.cli.display import Display
from rankwise.commands.runs import base_of_start
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Experiment
from rankwise.config.reading import Setting, read_experiment
from rankwise.config.settings import FLAGS, SECTIONS
from rankwise.errors import ConfigError, did_you_mean
from rankwise.python.run import Run
from rankwise.runs.records import Callback, StatusMessage, silent

LONGEST_STEM = 40
GIVEN_APART = {"data.path", "model.name"}
_Kind = TypeVar("_Kind", bound=Experiment)


def train(
    experiment: Experiment | None = None, *, model: Any = None, data: Any = None, run: str | None = None,
    progress: bool = True, callback: Callback | None = None, restart: bool = False, resume: bool = False,
    force_memory: bool = False, force_base: bool = False, **settings: Any,
) -> Run:  # fmt: skip
    """Train a model and return the finished run.

    Give an `Experiment`, or `model` and `data` with settings as keyword arguments: method, steps, epochs, rank,
    learning_rate, held_out and the others in docs/configuration.md. `validation_data` takes the same kinds of rows as
    `data`. `model` is a name, a folder, or a model from `rankwise.load`. Without `run`, the run gets the next free
    name. With `start_from` (a run or an adapter folder), training continues that adapter, and `model` may be left out.
    `progress` prints to stderr, in notebooks too; `callback` receives the events instead. Errors are `RankwiseError`s,
    as on the command line.
    """
    from rankwise.base.loaded import LoadedModel
    from rankwise.commands.train import train as train_command
    from rankwise.inference.tuned_model import TunedModel
    from rankwise.methods.artifact import artifact_of
    from rankwise.runs.snapshot import RunSnapshot

    loaded = model if isinstance(model, LoadedModel) else None
    with Display() if progress and callback is None else nullcontext(callback or silent) as events:
        if experiment is None:
            named = model if loaded is None else loaded.config
            experiment = experiment_with(named, data, run, settings, events)
        elif data is not None or run is not None or settings or (model is not None and loaded is None):
            raise ConfigError(
                ["train was given an experiment and other settings. Put the settings into the experiment."]
            )
        trained = train_command(
            experiment, callback=events, restart=restart, resume=resume, model=loaded, force_memory=force_memory,
            force_base=force_base,
        )  # fmt: skip
        snapshot = RunSnapshot.of(trained.run)
        artifact, system = artifact_of(snapshot, experiment.model.trust_code), snapshot.recorded_data.system
        return Run(snapshot, events, TunedModel(artifact, trained.model, trained.trainable, system))


def experiment_with(
    model: Any, data: Any, run: str | None, settings: dict[str, Any], events: Callback, verb: str = "train"
) -> Experiment:
    """The experiment of keyword arguments, with a free name where none is given."""
    adapter = settings.get("adapter")
    begun = adapter.get("start_from") if isinstance(adapter, dict) else getattr(adapter, "start_from", None)
    start_from = settings.get("start_from", begun)
    if isinstance(start_from, Path):
        settings = settings | {"start_from": str(start_from)}
    needed = [("model", model if start_from is None else start_from), ("data", data)]
    missing = [name for name, value in needed if value is None]
    if missing:
        raise ConfigError(
            [f'{verb} needs {" and ".join(missing)}, for example {verb}(model="smollm2-135m", data=rows).']
        )
    model = str(model) if isinstance(model, Path) else model
    if run is None:
        stem = str(start_from) if model is None else model
        run = _free_name(str(getattr(stem, "name", stem if isinstance(stem, str) else "run")))
        events(StatusMessage(f'the run is named "{run}"; name it yourself with run=…'))
    rows = settings.get("validation_data")
    validation = {} if rows is None else {"validation_data": rows_of(rows)}
    return experiment_of(model, rows_of(data), run, settings | validation)


def rows_of(data: Any) -> Any:
    """The rows as a file, where they are not one already. `data=` may also be a DataConfig or its settings."""
    if isinstance(data, DataConfig | str | None):
        return data
    if isinstance(data, Path):
        return str(data)
    if isinstance(data, dict) and ("path" in data or "sources" in data):
        return data
    from rankwise.rows.files.in_memory import rows_file

    return str(rows_file(data))


def _free_name(model: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).stem or "run").strip("-._")[:LONGEST_STEM] or "run"
    number = 1
    while (Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return f"{stem}-{number}"


def experiment_of(
    model: Any, data: Any, run: str, settings: Mapping[str, Any], read: Callable[..., _Kind] = read_experiment
) -> _Kind:
    """The experiment of these keyword arguments. ConfigError reports every keyword that is wrong."""
    named = [] if model is None else _section("model", model, "name")
    given = [*named, *_section("data", data, "path"), Setting("run", run, "run")]
    problems: list[str] = []
    for name, value in settings.items():
        if name == "validation" and not isinstance(value, BaseModel | Mapping):
            problems.append(
                f"validation is a {type(value).__name__}, but it sets when and how validation rows are used. Give the "
                "rows themselves as validation_data=…."
            )
        elif name in SECTIONS:
            given += _section(name, value, "")
        elif name in FLAGS:
            given.append(Setting(FLAGS[name].key, value, name))
        else:
            given += _flat(name, value, problems)
    if problems:
        raise ConfigError(problems)
    return read(None, [setting for setting in given if setting.value is not None], base_of_start)


def _section(name: str, value: Any, default_key: str) -> Iterator[Setting]:
    """A section given as a mapping or a config, or as the one setting that may stand for it alone."""
    if isinstance(value, BaseModel):
        named = {"method"} & type(value).model_fields.keys()  # a method's config has it even where nobody set it
        value = value.model_dump(mode="json", include={*value.model_fields_set, *named})
    if isinstance(value, Mapping):
        yield from (Setting(f"{name}.{key}", part, f"{name}={{{key!r}: …}}") for key, part in value.items())
    else:
        yield Setting(f"{name}.{default_key}" if default_key else name, value, name)


def _flat(name: str, value: Any, problems: list[str]) -> Iterator[Setting]:
    keys = sorted({f"{section}.{name}" for section, configs in SECTIONS.items() for config in configs
                   if name in config.model_fields and f"{section}.{name}" not in GIVEN_APART})  # fmt: skip
    if len(keys) == 1:
        yield Setting(keys[0], value, name)
    elif keys:
        sections = " or ".join(f"{key.partition('.')[0]}={{{name!r}: …}}" for key in keys)
        problems.append(f"{name}={value!r}: several sections have a setting of this name. Write {sections}.")
    else:
        names = {field for configs in SECTIONS.values() for config in configs for field in config.model_fields}
        problems.append(
            f"{name}={value!r}: there is no such setting.{did_you_mean(name, sorted(names | FLAGS.keys()))}"
        )
