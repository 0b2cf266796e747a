"""Settings as keyword arguments: `steps=20` is `training.steps`, `rank=8` is `adapter.rank`.

    experiment_of(model="smollm2-135m", data=Path("rows.jsonl"), run="first", settings={"steps": 20})

A keyword is a flag of `rankwise train` with underscores (`validate_every=50`), or any other setting that only one
section of the experiment has (docs/configuration.md lists them). A setting whose name several sections have is written
with its section: `validation={"steps": 50}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from rankwise.cli.settings import CONFIGS, FLAGS
from rankwise.commands.starting import base_of_start
from rankwise.config.experiment import Experiment
from rankwise.config.reading import Setting, read_experiment
from rankwise.errors import ConfigError, did_you_mean

GIVEN_APART = {"data.path", "model.name"}


def experiment_of(model: Any, data: Any, run: str, settings: Mapping[str, Any]) -> Experiment:
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
        elif name in CONFIGS or name == "objective":
            given += _section(name, value, "")
        elif name in FLAGS:
            given.append(Setting(FLAGS[name].setting, value, name))
        else:
            given += _flat(name, value, problems)
    if problems:
        raise ConfigError(problems)
    return read_experiment(None, [setting for setting in given if setting.value is not None], base_of_start)


def _section(name: str, value: Any, alone: str) -> Iterator[Setting]:
    """A section given as a mapping or a config, or as the one setting that may stand for it alone."""
    if isinstance(value, BaseModel):
        named = {"method"} & type(value).model_fields.keys()  # a method's config has it even where nobody set it
        value = value.model_dump(mode="json", include={*value.model_fields_set, *named})
    if isinstance(value, Mapping):
        yield from (Setting(f"{name}.{key}", part, f"{name}={{{key!r}: …}}") for key, part in value.items())
    else:
        yield Setting(f"{name}.{alone}" if alone else name, value, name)


def _flat(name: str, value: Any, problems: list[str]) -> Iterator[Setting]:
    keys = sorted({f"{section}.{name}" for section, configs in CONFIGS.items() for config in configs
                   if name in config.model_fields and f"{section}.{name}" not in GIVEN_APART})  # fmt: skip
    if len(keys) == 1:
        yield Setting(keys[0], value, name)
    elif keys:
        sections = " or ".join(f"{key.partition('.')[0]}={{{name!r}: …}}" for key in keys)
        problems.append(f"{name}={value!r}: several sections have a setting of this name. Write {sections}.")
    else:
        names = {field for configs in CONFIGS.values() for config in configs for field in config.model_fields}
        problems.append(
            f"{name}={value!r}: there is no such setting.{did_you_mean(name, sorted(names | FLAGS.keys()))}"
        )
