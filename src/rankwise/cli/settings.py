"""The flags that are settings: each follows from its field in the configuration (config/settings.py).

    @takes_settings(["model", "data", "rank"])
    def train(config: ConfigFile = None, settings: GivenSettings = NONE_GIVEN, ...)

gives `train` the flags --model, --data, --rank and --set in place of `settings`, which holds what the user gave. The
help of a flag is a docstring, which is read from the source; that takes a moment, so only --help does it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter
from typing import Annotated, Any

from typer.core import TyperCommand

from rankwise.cli.options import OUTPUT, PROCESSES, option, separated, starters
from rankwise.config.adapters import METHODS
from rankwise.config.experiment import TRACKERS
from rankwise.config.reading import Setting, parse_setting
from rankwise.config.recipe import RECIPES
from rankwise.config.settings import FLAGS, FlagOf, words_of
from rankwise.config.tasks import BUILT_IN
from rankwise.errors import ConfigError, abbreviated
from rankwise.runs.listing import run_names

REQUIRED = "Required, as flags or in the YAML file"
FIRST, TRAINED, MORE = "Common options", "Training", "Other options"
NEEDED = (
    "model", "data", "run", "prompt", "completion", "text", "label", "held_out", "epochs", "steps", "method", "rank",
    "learning_rate", "batch_size",
)  # fmt: skip
PANELS = {
    "Arguments": (), REQUIRED: (), FIRST: (), "Rows": ("data", "images"), "Model": ("model", "objective"),
    "Adapter": ("adapter",), TRAINED: ("training", "preference"),
    "Validation": ("validation", "data.held_out", "data.group", "data.validation"),
    "Limiting forgetting": ("training.anchor", "training.replay"), PROCESSES: ("model.sharded",),
    OUTPUT: ("tracking",), MORE: (),
}  # fmt: skip
"""The parts in which --help shows the options of a command, and the beginnings of the settings in each. The longest
beginning counts."""


def _panel(name: str) -> str:
    key = FLAGS[name].key
    beginnings = [(len(one), part) for part, these in PANELS.items() for one in these if key.startswith(one)]
    first = FIRST if name not in NEEDED[:3] else REQUIRED
    return first if name in NEEDED else max(beginnings, default=(0, MORE))[1]


def _flags_in(part: str, *beginnings: str) -> tuple[str, ...]:
    """Names of the flags in this part of the help, or among what most people need, whose settings start with one of
    `beginnings`."""
    return tuple(name for name in FLAGS if _panel(name) in (FIRST, part) and FLAGS[name].key.startswith(beginnings))


ROWS = tuple(name for name in _flags_in("Rows", "data.") if name not in ("data", "held_out"))
IMAGES = _flags_in("Rows", "images.")
VALIDATION_ROWS = _flags_in("Validation", "data.held_out", "data.group", "data.validation")
ADAPTER = _flags_in("Adapter", "adapter.")
TRAINING = tuple(name for name in FLAGS if name not in ("shard", "log_to"))
"""All that a training takes, and a plan of it in the same words."""
COMPLETED: Mapping[str, Callable[..., Sequence[str]]] = {
    "model": starters, "run": run_names, "start_from": run_names, "method": lambda: [*METHODS],
    "recipe": lambda: RECIPES, "accuracy_tasks": separated(*BUILT_IN), "log_to": separated(*TRACKERS),
}  # fmt: skip
"""What completion in a shell proposes behind a flag, where its type does not say it."""


def _option(name: str, help: str | None) -> Parameter:
    """The help of a setting is added when it is shown."""
    setting = FLAGS[name]
    default = f"[default: {setting.default}]" if setting.default and not help else ""
    words = COMPLETED.get(name, lambda: words_of(setting.setting.field.annotation))
    kind = Annotated[setting.kind | None, option(
        help or default, setting.flag.name, rich_help_panel=_panel(name), autocompletion=words)]  # fmt: skip
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=kind)


class Explaining(TyperCommand):
    """A command that answers an unknown flag with the one that it may abbreviate, or that has another name now."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if "possibilities" in vars(error):  # typer may bundle click under another name
                wrong: Any = error
                meant = abbreviated(wrong.option_name, (word for one in self.params for word in one.opts))
                wrong.possibilities = meant or wrong.possibilities
            raise


class InPanels(Explaining):
    """One whose --help shows its options in parts."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        parts: dict[str, list[tuple[str, str]]] = {part: [] for part in PANELS}
        options: list[Any] = self.get_params(ctx)
        for one in options:
            if (record := one.get_help_record(ctx)) is not None:
                part = "Arguments" if one.param_type_name == "argument" else one.rich_help_panel or MORE
                part = FIRST if part == REQUIRED and ctx.info_name == "plan" else part
                parts[part].append(_explained(record, FLAGS.get(one.name or "")))
        write_parts(formatter, parts)


def write_parts(formatter: Any, parts: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """The parts of a --help that have lines."""
    for part, lines in parts.items():
        if lines:
            with formatter.section(part):
                formatter.write_dl(lines)


def _explained(record: tuple[str, str], setting: FlagOf | None) -> tuple[str, str]:
    """The words of a flag and its help."""
    words, text = record
    if setting is None or (text and not text.startswith("[default:")):
        return record
    return words, f"{setting.help}  {text}".replace("`", "").rstrip()


_SET = Annotated[
    list[str] | None,
    option("Any setting by its full name: --set training.clip=0.5. Can be repeated.", "--set"),
]


@dataclass(frozen=True)
class GivenSettings:
    flags: Mapping[str, Any] = field(default_factory=dict)
    assignments: Sequence[str] = ()

    def read(self, tune: bool = False) -> list[Setting]:
        """The settings that were given, each with its flag as its origin; those of --set come last. `tune`: --tune was
        given, which chooses the learning rate."""
        named = [Setting(FLAGS[name].key, value, FLAGS[name].flag.name) for name, value in self.flags.items()
                 if value is not None]  # fmt: skip
        given = [*named, *map(parse_setting, self.assignments)]
        return given if not tune else [*given, _tuned(given)]


def _tuned(settings: Sequence[Setting]) -> Setting:
    rates = [one for one in settings if one.key == "training.learning_rate" and one.value != "tune"]
    if rates:
        raise ConfigError([
            f"--tune chooses the learning rate, and {rates[0].origin} sets it to {rates[0].value}. Give one of them."
        ])  # fmt: skip
    return Setting("training.learning_rate", "tune", "--tune")


NONE_GIVEN = GivenSettings()


def takes_settings(names: Sequence[str], **helps: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a command's parameter `settings` by a flag for each of these settings, and --set. `helps` are other help
    texts than the usual ones."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        options = [_option(name, helps.get(name)) for name in sorted(names, key=lambda key: [*NEEDED, key].index(key))]
        options.append(Parameter("set_", Parameter.KEYWORD_ONLY, default=None, annotation=_SET))
        parameters: list[Parameter] = []
        for parameter in signature.parameters.values():
            keyword = parameter.replace(kind=Parameter.KEYWORD_ONLY)
            parameters += options if parameter.name == "settings" else [keyword]

        @functools.wraps(command)
        def wrapped(**values: Any) -> None:
            flags = {name: values.pop(name, None) for name in names}
            assignments = values.pop("set_", None) or ()
            command(**values, settings=GivenSettings(flags, assignments))

        wrapped.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore[reportAttributeAccessIssue]
        wrapped.__annotations__ = {one.name: one.annotation for one in parameters}
        return wrapped

    return decorate
