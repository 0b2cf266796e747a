"""The flags that are settings: one line for each, with its type and its help; the default comes from the configuration.

    @takes_settings("model", "data", "rank")
    def train(config: ConfigFile = None, given: GivenSettings = NONE_GIVEN, ...)

gives `train` the flags --model, --data, --rank and --set in place of `given`, which holds what the user gave.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter
from typing import Annotated, Any

from pydantic_core import PydanticUndefined
from typer.core import TyperCommand

from rankwise.cli.options import option
from rankwise.config.adapters import METHODS
from rankwise.config.base import listed
from rankwise.config.classification import ClassificationConfig
from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.config.objectives import LEARNED
from rankwise.config.preference import PreferenceConfig
from rankwise.config.reading import Setting, parse_setting
from rankwise.config.tracking import TrackingConfig
from rankwise.config.training import TrainingConfig
from rankwise.config.validation import ValidationConfig
from rankwise.errors import ConfigError

CONFIGS = {
    "model": [ModelConfig], "data": [DataConfig], "adapter": [*METHODS.values()],
    "training": [TrainingConfig], "validation": [ValidationConfig], "classification": [ClassificationConfig],
    "preference": [PreferenceConfig], "tracking": [TrackingConfig],
}  # fmt: skip


@dataclass(frozen=True)
class Flag:
    setting: str
    kind: type
    help: str
    """A default that is written here takes the place of the configuration's."""

    def option(self, name: str, help: str | None) -> Parameter:
        text = help or self.help
        shown = "" if "[default:" in text else self._default()
        shape = Annotated[self.kind | None, option(f"{text}{shown}", flag(name))]
        return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=shape)

    def _default(self) -> str:
        part, _, name = self.setting.partition(".")
        fields = [config.model_fields[name] for config in CONFIGS.get(part, ()) if name in config.model_fields]
        value = fields[0].default if fields else None
        if value in (None, PydanticUndefined) or isinstance(value, bool | tuple):
            return ""
        return f"  [default: {value:g}]" if isinstance(value, int | float) else f"  [default: {value}]"


FLAGS = {
    "model": Flag("model.name", str, "Starter name, hub id, folder or .gguf file."),
    "quantize": Flag("model.quantize", str,
        "Store the frozen weights in fewer bits: nf4 (a quarter of bfloat16's memory), int8 (half) or none.  "
        "[default: as the model has them]"),
    "memory": Flag("model.memory", str,
        "Most memory that a training on the CPU may have resident, such as 6GB. It takes longer; the "
        "result is the same but for rounding."),
    "shard": Flag("model.sharded", bool,
        "Split the base over the processes (PyTorch's FSDP2), so that each has its share of the weights in memory. The "
        "result is the same but for rounding."),
    "new_tokens": Flag("model.new_tokens", str,
        "Texts that become tokens of their own, separated by commas: <city>,<date>. Only their rows are trained and "
        "stored, with the adapter."),
    "data": Flag("data.path", str, "File or folder of rows, or hub:organisation/name."),
    "run": Flag("run", str, "Name of the run: the folder runs/NAME."),
    "objective": Flag("objective", str,
        f"What the model learns from a row: {LEARNED}.  [default: by the model]"),
    "preference_loss": Flag("preference.loss", str,
        "Loss of preference pairs: dpo (compared with the model before training) or orpo (without a reference)."),
    "beta": Flag("preference.beta", float,
        "With dpo, how strongly the model is held to the reference; with orpo, the weight of the odds ratio."),
    "method": Flag("adapter.method", str,
        f"{listed(config.named for config in METHODS.values())}.  [default: lora]"),
    "start_from": Flag("adapter.start_from", str,
        "Begin with this adapter instead of a new one: a finished run, or the folder of a PEFT adapter. Its base, "
        "layers, ranks and scale are taken over."),
    "budget": Flag("adapter.budget", str,
        "AdaLoRA budget: a mean rank (8), 600k parameters, or the adapter's size (2MB)."),
    "rank": Flag("adapter.rank", int, "LoRA rank."),
    "alpha": Flag("adapter.alpha", float, "LoRA alpha; the adapter's change is scaled by alpha / rank.  [default: 32]"),
    "dropout": Flag("adapter.dropout", float, "Dropout probability on the adapters' input."),
    "targets": Flag("adapter.targets", str,
        "Layers to adapt: all-linear, all-conv, names (q_proj,v_proj) or a regular expression.  [default: all-linear, "
        "or all-conv for a model without linear layers]"),
    "layers": Flag("adapter.layers", str, "Blocks to adapt: 0-3,7.  [default: all]"),
    "image_size": Flag("images.size", int,
        "Side of the square images that the model receives, in pixels.  [default: the model's own]"),
    "augmentation": Flag("images.augmentation", str,
        "How training images are varied: none, flip, crop or trivial.  [default: none]"),
    "epochs": Flag("training.epochs", float,
        "Passes over the rows.  [default: 2; of a classifier of texts, until its validation stops improving]"),
    "steps": Flag("training.steps", int, "Optimizer steps, instead of epochs."),
    "batch_size": Flag("training.batch_size", int, "Rows per optimizer step."),
    "learning_rate": Flag("training.learning_rate", float,
        "Highest learning rate.  [default: by the method and the model's hidden size]"),
    "auto_batch": Flag("training.auto_batch", bool,
        "If memory runs out, compute fewer tokens at once. The rows of a step stay the same."),
    "keep_checkpoints": Flag("training.keep_checkpoints", int,
        "Checkpoints that are stored at a time, each about three times as large as the adapter. Where the newest one "
        "is damaged, --resume takes the one before it.  [default: 2]"),
    "anchor": Flag("training.anchor.weight", float,
        "Hold the model to its base on other text while it learns, with this weight, so that it forgets less; 1 is "
        "usual.  [default: off]"),
    "anchor_text": Flag("training.anchor.text", str,
        "The other text: a text file, or rows with a `text`.  [default: text that the base writes itself]"),
    "forget_at_most": Flag("training.anchor.forget_at_most", str,
        "Budget of forgetting: 0.03 is the KL divergence from the base in nats per token of ordinary text, and 5% the "
        "percentage points of accuracy on the tasks of --accuracy-tasks. The result keeps it."),
    "accuracy_tasks": Flag("training.anchor.tasks", str,
        "Tasks of a budget of accuracy, separated by commas: arc_easy,hellaswag, or YAML files."),
    "replay": Flag("training.replay.share", float,
        "Share of replay rows in the rows that training shows, such as 0.2: rows of other kinds, so that the model "
        "forgets less.  [default: off]"),
    "replay_data": Flag("training.replay.data", str,
        "File, folder or hub data set of the replay rows, or run:NAME for the training rows of a run.  [default: the "
        "base's own answers to general instructions]"),
    "backend": Flag("training.backend", str,
        "How losses are computed: eager (the model's own code), fused or compiled."),
    "recipe": Flag("data.recipe", str,
        "Train as a published system did: alpaca, alpaca-lora, vicuna, gpt4all-j, dolly, stablelm."),
    "format": Flag("data.format", str, "Row format, instead of the one detected from the columns.  [default: auto]"),
    "prompt": Flag("data.prompt", str, 'The prompt, with column names in braces: "Summarise: {dialogue}".'),
    "completion": Flag("data.completion", str, 'The answer to train on, with column names in braces: "{summary}".'),
    "text": Flag("data.columns.text", str, "Column with the text of a classifier's rows."),
    "text_pair": Flag("data.columns.text_pair", str, "Column with a second text."),
    "label": Flag("data.columns.label", str, "Column with the label."),
    "system": Flag("data.system", str,
        "System message for rows without one. With --prompt, it may contain column names in braces."),
    "ignore_columns": Flag("data.ignore_columns", str, "Columns to ignore, separated by commas."),
    "reasoning": Flag("data.reasoning", str,
        "Reasoning in answers, between <think> and </think>: learn puts it into the loss, mask leaves it out.  "
        "[default: the model is asked not to reason]"),
    "max_length": Flag("data.max_length", int, "Largest number of tokens in a row.  [default: 1024, or the recipe's]"),
    "on_bad_row": Flag("data.on_bad_row", str,
        "stop: end with an error at a row that cannot be used; skip: leave it out and list it.  [default: stop]"),
    "held_out": Flag("data.held_out", str,
        "Validation rows to take from the training rows: their number or a share (0.1, 10%).  [default: a tenth, at "
        "most 500, if there are 50 rows or more]"),
    "held_out_order": Flag("data.held_out_order", str,
        "How they are chosen. seed: at random, in proportion to the labels; last: the last rows."),
    "group": Flag("data.group", str,
        "Column of groups: rows with the same value are all in training or all in validation."),
    "validation_data": Flag("data.validation", str, "File of validation rows, which are never trained on."),
    "validate_every": Flag("validation.steps", int, "Steps between validations.  [default: a tenth of all steps]"),
    "keep": Flag("validation.keep", str,
        "Which checkpoint to keep: best (by validation loss) or last.  [default: last; of a classifier of texts "
        "without --epochs and --steps, best]"),
    "patience": Flag("validation.patience", int, "Stop early after N validations without improvement."),
    "seed": Flag("training.seed", int, "Seed of the training."),
    "log_to": Flag("tracking.log_to", str,
        "Trackers that receive the run's records, separated by commas: tensorboard, wandb, mlflow, trackio. They write "
        "to this machine unless their own settings name a server."),
}  # fmt: skip
ROWS = (
    "recipe", "format", "prompt", "completion", "text", "text_pair", "label", "system", "ignore_columns", "reasoning",
    "max_length", "on_bad_row",
)  # fmt: skip
VALIDATION_ROWS = ("held_out", "held_out_order", "group", "validation_data")
KEEPING = ("anchor", "anchor_text", "forget_at_most", "accuracy_tasks", "replay", "replay_data")
IMAGES = ("image_size", "augmentation")
ADAPTER = ("start_from", "method", "budget", "rank", "alpha", "dropout", "targets", "layers")
PANELS = {
    "What most people need": (
        "model", "data", "run", "prompt", "completion", "method", "rank", "epochs", "learning_rate", "batch_size",
    ),
    "Rows": (*(name for name in ROWS if name not in ("prompt", "completion")), *IMAGES),
    "Model": ("objective", "quantize", "memory", "new_tokens"),
    "Adapter": ("start_from", "budget", "alpha", "dropout", "targets", "layers"),
    "Training": (
        "steps", "preference_loss", "beta", "auto_batch", "backend", "keep_checkpoints", "seed", "tune", "restart",
        "resume",
    ),
    "Validation": (*VALIDATION_ROWS, "validate_every", "keep", "patience"),
    "Keeping what the base knew": KEEPING,
    "Several processes": ("processes", "shard"),
    "Output": ("log_to", "as_json", "quiet"),
}  # fmt: skip
"""The options of a command in the parts in which --help shows them. Options of no part come last."""
TRAINING = tuple(name for part in PANELS.values() for name in part if name in FLAGS and name not in ("shard", "log_to"))
"""All that a training takes, and a plan of it in the same words."""


class InPanels(TyperCommand):
    """A command whose --help shows its options in parts."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        part_of = {name: part for part, names in PANELS.items() for name in names}
        parts: dict[str, list[Any]] = {"Arguments": [], **{part: [] for part in PANELS}, "Others": []}
        for one in self.get_params(ctx):
            part = "Arguments" if one.param_type_name == "argument" else part_of.get(one.name or "", "Others")
            parts[part].append(one.get_help_record(ctx))
        for part, shown in parts.items():
            if lines := [one for one in shown if one is not None]:
                with formatter.section(part):
                    formatter.write_dl(lines)


_SET = Annotated[
    list[str] | None,
    option("Any setting, for example --set training.clip=0.5. Can be repeated.", "--set"),
]


@dataclass(frozen=True)
class GivenSettings:
    flags: Mapping[str, Any] = field(default_factory=dict)
    assignments: Sequence[str] = ()

    def read(self, tune: bool = False) -> list[Setting]:
        """The settings that were given, each with its flag as its origin; those of --set come last. `tune`: --tune was
        given, which chooses the learning rate."""
        named = [Setting(FLAGS[name].setting, value, flag(name)) for name, value in self.flags.items()
                 if value is not None]  # fmt: skip
        given = [*named, *map(parse_setting, self.assignments)]
        return given if not tune else [*given, _tuned(given)]


def _tuned(given: Sequence[Setting]) -> Setting:
    rates = [one for one in given if one.key == "training.learning_rate" and one.value != "tune"]
    if rates:
        raise ConfigError([
            f"--tune chooses the learning rate, and {rates[0].origin} sets it to {rates[0].value}. Give one of them."
        ])  # fmt: skip
    return Setting("training.learning_rate", "tune", "--tune")


NONE_GIVEN = GivenSettings()


OTHER_NAMES = {"start_from": "--from"}
"""Flags whose names are words of Python."""


def flag(name: str) -> str:
    return OTHER_NAMES.get(name) or f"--{name.replace('_', '-')}"


def takes_settings(*names: str, **helps: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a command's parameter `given` by a flag for each of these settings, and --set. `helps` are other help
    texts than the usual ones."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        options = [FLAGS[name].option(name, helps.get(name)) for name in names]
        options.append(Parameter("set_", Parameter.KEYWORD_ONLY, default=None, annotation=_SET))
        parameters: list[Parameter] = []
        for parameter in signature.parameters.values():
            keyword = parameter.replace(kind=Parameter.KEYWORD_ONLY)
            parameters += options if parameter.name == "given" else [keyword]

        @functools.wraps(command)
        def wrapped(**values: Any) -> None:
            flags = {name: values.pop(name, None) for name in names}
            assignments = values.pop("set_", None) or ()
            command(**values, given=GivenSettings(flags, assignments))

        wrapped.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore[reportAttributeAccessIssue]
        wrapped.__annotations__ = {one.name: one.annotation for one in parameters}
        return wrapped

    return decorate
