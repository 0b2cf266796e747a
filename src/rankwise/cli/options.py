"""Options that several commands share. Those that are settings of an experiment stand in settings.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def option(help: str, *names: str, **more: Any) -> Any:
    """A flag that is off or has no value unless it is given, or whose help names its default."""
    return typer.Option(*names, help=help, show_default=False, **more)


def argument(help: str, **more: Any) -> Any:
    return typer.Argument(help=help, show_default=False, **more)


OUTPUT, PROCESSES = "Output", "Several processes"
"""Parts of --help."""
Json = Annotated[bool, option(
    "Print one JSON object on stdout; everything else goes to stderr.", "--json", rich_help_panel=OUTPUT)]  # fmt: skip
Quiet = Annotated[bool, option("Show no progress.", "--quiet", rich_help_panel=OUTPUT)]
Tune = Annotated[bool, option(
    "Choose the learning rate by short trials on your rows before the run begins.", "--tune",
    rich_help_panel="Training")]  # fmt: skip
Yes = Annotated[bool, option("Do not ask for confirmation.", "--yes")]
RunName = Annotated[
    str,
    argument("A finished run (its name or folder), or an adapter (its folder or file)."),
]
Base = Annotated[bool, option("Use the base model without the adapter.", "--base")]
Both = Annotated[bool, option("Answer with the run's model and with its base model.", "--both")]
System = Annotated[str | None, option("System message, instead of the one from training.")]
MaxNewTokens = Annotated[int, typer.Option(help="Largest number of tokens in an answer.")]
Temperature = Annotated[float, typer.Option(help="Sampling temperature. 0 always takes the most likely token.")]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p", help="With a temperature: sample only the most likely tokens that together have this probability."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of the sampling.")]
RepetitionCheck = Annotated[
    bool, typer.Option("--repetition-check/--no-repetition-check", help="Stop an answer that repeats itself.")
]
ForceBase = Annotated[
    bool, option("Use the base model even if its weights have changed since training.", "--force-base")
]
ForceResult = Annotated[
    bool, option("Use the run's result even if its files have changed since training.", "--force-result")
]
BaseModel = Annotated[
    str | None,
    option("Base model to use instead of the one that the run or adapter names.", "--base-model"),
]
TrustCode = Annotated[
    str | None,
    option("Commit (40 hex digits) of the base model's own Python code that may run. Read it first.", "--trust-code"),
]
Schema = Annotated[str | None, option("File of a JSON Schema that answers are held to.  [default: the run's own]")]
Choices = Annotated[str | None, option("The only answers there are, separated by commas.")]
Regex = Annotated[str | None, option("Regular expression that a whole answer matches.")]
Grammar = Annotated[str | None, option("File of a grammar in Lark's notation that answers follow.")]
Unconstrained = Annotated[bool, option("Do not hold answers to the run's own schema.", "--unconstrained")]
Host = Annotated[str, typer.Option(help="Address to listen at. Any but this machine's own needs a key.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")]
ApiKey = Annotated[
    str | None,
    option(
        "Key that whoever asks must give. In the variable, other users of the machine cannot see it.",
        "--api-key",
        envvar="RANKWISE_API_KEY",
        show_envvar=True,
    ),
]
ConfigFile = Annotated[Path | None, argument("YAML file of settings.")]
