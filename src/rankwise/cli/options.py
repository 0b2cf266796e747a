"""Options that several commands share. Those that are settings of an experiment stand in settings.py.

Options that always come together are a group, which is one parameter of a command:

    @takes_groups
    def generate(run: RunName, *, answering: AnswerOptions, ...)
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from rankwise.config.validation import GenerationConfig
from rankwise.runs.listing import run_names


def option(help: str, *names: str, **more: Any) -> Any:
    """A flag. Its default is shown, if it has one; a help that names a default in words says it where there is none."""
    return typer.Option(*names, help=help, **more)


def argument(help: str, **more: Any) -> Any:
    return typer.Argument(help=help, **more)


def starters() -> list[str]:
    """The starters, for completion in a shell."""
    from rankwise.planning.reading import STARTERS  # late: it reads tokenizers, and only a Tab asks for it

    return sorted(STARTERS)


def runs_and_starters() -> list[str]:
    return [*run_names(), *starters()]


def separated(*words: str) -> Callable[[str], list[str]]:
    """Completion of the last of several words between commas."""

    def complete(typed: str) -> list[str]:
        before, comma, _ = typed.rpartition(",")
        return [f"{before}{comma}{word}" for word in words]

    return complete


OUTPUT, PROCESSES = "Output", "Multiple processes"
"""Parts of --help."""
Json = Annotated[bool, option(
    "Print one JSON object on stdout; everything else goes to stderr.", "--json", rich_help_panel=OUTPUT)]  # fmt: skip
Quiet = Annotated[bool, option("Hide progress output.", "--quiet", rich_help_panel=OUTPUT)]
Tune = Annotated[bool, option(
    "Choose the learning rate with short trials on your rows first.", "--tune",
    rich_help_panel="Training")]  # fmt: skip
Yes = Annotated[bool, option("Don't ask for confirmation.", "--yes")]
RunName = Annotated[
    str,
    argument("A finished run (name or folder) or an adapter (folder or file).", autocompletion=run_names),
]
Base = Annotated[bool, option("Use the base model without the adapter.", "--base")]
Both = Annotated[bool, option("Answer with both the run's model and its base model.", "--both")]
System = Annotated[str | None, option("System message to use instead of the one from training.")]
ForceBase = Annotated[bool, option("Use the base model even if its weights changed after training.", "--force-base")]
ForceResult = Annotated[
    bool, option("Use the run's result even if its files changed after training.", "--force-result")
]
BaseModel = Annotated[
    str | None,
    option("Base model to use instead of the one recorded in the run or adapter.", "--base-model"),
]
TrustCode = Annotated[
    str | None,
    option(
        "Run the base model's own Python code, from this commit (40 hex digits). Read the code first.", "--trust-code"
    ),
]
Unconstrained = Annotated[
    bool, option("Don't constrain answers, even if the run has a schema or another constraint.", "--unconstrained")
]
Host = Annotated[str, option("Address to listen on. An address that other machines can reach needs a key.")]
Port = Annotated[int, option("Port to listen on.", min=1, max=65535)]
ApiKey = Annotated[
    str | None,
    option(
        "Key that clients must send. Set it in the environment variable to hide it from other users of this machine.",
        "--api-key",
        envvar="RANKWISE_API_KEY",
        show_envvar=True,
    ),
]
ConfigFile = Annotated[Path | None, argument("YAML file with settings.")]


@dataclass(frozen=True)
class ConstraintOptions:
    """What answers are held to."""

    schema: Annotated[
        str | None, option("JSON Schema (file) that every answer must match.  [default: the run's own]")
    ] = None
    choices: Annotated[str | None, option("The allowed answers, separated by commas.")] = None
    regex: Annotated[str | None, option("Regular expression that every whole answer must match.")] = None
    grammar: Annotated[str | None, option("Lark grammar (file) that every answer must follow.")] = None
    unconstrained: Unconstrained = False

    @property
    def constraint(self) -> Any:
        from rankwise.constraints.constraint import constraint_from

        return constraint_from(**{one.name: getattr(self, one.name) for one in fields(ConstraintOptions)})


@dataclass(frozen=True)
class AnswerOptions(ConstraintOptions):
    """How answers are written."""

    max_new_tokens: Annotated[int, option("Maximum number of tokens in an answer.")] = 256
    temperature: Annotated[float, option("Sampling temperature. With 0, the most likely token is always chosen.")] = 0.0
    top_p: Annotated[
        float,
        option("Nucleus sampling: sample from the most likely tokens whose probabilities add up to this value."),
    ] = 1.0
    seed: Annotated[int, option("Sampling seed.")] = 0
    repetition_check: Annotated[bool, option(
        "Stop answers that repeat themselves.", "--repetition-check/--no-repetition-check")] = True  # fmt: skip

    @property
    def config(self) -> GenerationConfig:
        own = {name: value for name, value in vars(self).items() if name in GenerationConfig.model_fields}
        return GenerationConfig(**own, constraint=self.constraint)


@dataclass(frozen=True)
class OpeningOptions:
    """How a run or an adapter is opened."""

    base_model: BaseModel = None
    force_base: ForceBase = False
    force_result: ForceResult = False
    trust_code: TrustCode = None


def takes_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter that is a group by the group's options, whose defaults are those of its own default."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {}
    parameters: list[Parameter] = []
    for name, one in signature.parameters.items():
        if not is_dataclass(one.annotation):
            parameters.append(one.replace(kind=Parameter.KEYWORD_ONLY))
            continue
        group: Any = one.annotation
        groups[name], usual = group, group() if one.default is Parameter.empty else one.default
        for option in inspect.signature(group, eval_str=True).parameters.values():
            parameters.append(option.replace(kind=Parameter.KEYWORD_ONLY, default=getattr(usual, option.name)))

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    wrapped.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore[reportAttributeAccessIssue]
    wrapped.__annotations__ = {one.name: one.annotation for one in parameters}
    return wrapped
