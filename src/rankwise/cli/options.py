"""Options that several commands share. Those that are settings of an experiment stand in settings.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; everything else goes to stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Tune = Annotated[
    bool, typer.Option("--tune", help="Choose the learning rate by short trials on your rows before the run begins.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]
RunName = Annotated[
    str,
    typer.Argument(help="A finished run (its name or folder), or an adapter (its folder or file).", show_default=False),
]
Base = Annotated[bool, typer.Option("--base", help="Use the base model without the adapter.")]
Both = Annotated[bool, typer.Option("--both", help="Answer with the run's model and with its base model.")]
System = Annotated[
    str | None, typer.Option(help="System message, instead of the one from training.", show_default=False)
]
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
    bool, typer.Option("--force-base", help="Use the base model even if its weights have changed since training.")
]
ForceResult = Annotated[
    bool, typer.Option("--force-result", help="Use the run's result even if its files have changed since training.")
]
BaseModel = Annotated[
    str | None,
    typer.Option(
        "--base-model", help="Base model to use instead of the one that the run or adapter names.", show_default=False
    ),
]
TrustCode = Annotated[
    str | None,
    typer.Option(
        "--trust-code",
        help="Commit (40 hex digits) of the base model's own Python code that may run. Read it first.",
        show_default=False,
    ),
]
Host = Annotated[str, typer.Option(help="Address to listen at. Any but this machine's own needs a key.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="RANKWISE_API_KEY",
        show_envvar=True,
        show_default=False,
        help="Key that whoever asks must give. In the variable, other users of the machine cannot see it.",
    ),
]
ConfigFile = Annotated[Path | None, typer.Argument(help="YAML file of settings.", show_default=False)]
