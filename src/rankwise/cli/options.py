"""Options that several commands share, and the setting that belongs to each flag of `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rankwise.config.reading import Setting

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; everything else goes to stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]
RunName = Annotated[
    str,
    typer.Argument(help="A finished run (its name or folder), or the folder of a PEFT adapter.", show_default=False),
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
    bool,
    typer.Option(
        "--repetition-check/--no-repetition-check",
        help="Stop an answer that repeats itself.",
    ),
]
ForceBase = Annotated[
    bool, typer.Option("--force-base", help="Use the base model even if its weights have changed since training.")
]
ForceResult = Annotated[
    bool,
    typer.Option("--force-result", help="Use the run's result even if its files have changed since training."),
]
BaseModel = Annotated[
    str | None,
    typer.Option(
        "--base-model",
        help="Base model to use instead of the one that the run or adapter names.",
        show_default=False,
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
ConfigFile = Annotated[Path | None, typer.Argument(help="YAML file of settings.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Any setting, for example --set training.clip=0.5. Can be repeated.", show_default=False
    ),
]

Recipe = Annotated[
    str | None,
    typer.Option(
        help="Train as a published system did: alpaca, alpaca-lora, vicuna, gpt4all-j, dolly, stablelm.",
        show_default=False,
    ),
]
Format = Annotated[
    str | None,
    typer.Option(help="Row format, instead of the one detected from the columns.  [default: auto]", show_default=False),
]
PromptColumns = Annotated[
    str | None,
    typer.Option(
        "--prompt", help='The prompt, with column names in braces: "Summarise: {dialogue}".', show_default=False
    ),
]
CompletionColumns = Annotated[
    str | None,
    typer.Option(
        "--completion", help='The answer to train on, with column names in braces: "{summary}".', show_default=False
    ),
]
SystemColumns = Annotated[
    str | None,
    typer.Option(
        "--system",
        help="System message for rows without one. With --prompt, it may contain column names in braces.",
        show_default=False,
    ),
]
IgnoreColumns = Annotated[
    str | None,
    typer.Option(help="Columns to ignore, separated by commas.", show_default=False),
]
OnBadRow = Annotated[
    str | None,
    typer.Option(
        help="stop: end with an error at a row that cannot be used; skip: leave it out and list it.  [default: stop]",
        show_default=False,
    ),
]
Evaluation = Annotated[
    str | None, typer.Option(help="File of validation rows, which are never trained on.", show_default=False)
]
MaxLength = Annotated[
    int | None,
    typer.Option(help="Largest number of tokens in a row.  [default: 1024, or the recipe's]", show_default=False),
]
HeldOut = Annotated[
    int | None,
    typer.Option(help="Number of validation rows to take from the training rows.  [default: 0]", show_default=False),
]
HeldOutOrder = Annotated[
    str | None,
    typer.Option(
        help="How they are chosen. seed: at random, in proportion to the labels; last: the last rows.  [default: seed]",
        show_default=False,
    ),
]
Group = Annotated[
    str | None,
    typer.Option(
        help="Column of groups: rows with the same value are all in training or all in validation.", show_default=False
    ),
]

FLAGS = {
    "model": ("--model", "model.name"),
    "data": ("--data", "data.path"),
    "run": ("--run", "run"),
    "method": ("--method", "adapter.method"),
    "budget": ("--budget", "adapter.budget"),
    "rank": ("--rank", "adapter.rank"),
    "alpha": ("--alpha", "adapter.alpha"),
    "dropout": ("--dropout", "adapter.dropout"),
    "targets": ("--targets", "adapter.targets"),
    "layers": ("--layers", "adapter.layers"),
    "epochs": ("--epochs", "training.epochs"),
    "steps": ("--steps", "training.steps"),
    "batch_size": ("--batch-size", "training.batch_size"),
    "learning_rate": ("--learning-rate", "training.learning_rate"),
    "auto_batch": ("--auto-batch", "training.auto_batch"),
    "plain": ("--plain", "training.plain"),
    "max_length": ("--max-length", "data.max_length"),
    "held_out": ("--held-out", "data.held_out"),
    "held_out_order": ("--held-out-order", "data.held_out_order"),
    "group": ("--group", "data.group"),
    "seed": ("--seed", "training.seed"),
    "recipe": ("--recipe", "data.recipe"),
    "format": ("--format", "data.format"),
    "prompt": ("--prompt", "data.prompt"),
    "completion": ("--completion", "data.completion"),
    "system": ("--system", "data.system"),
    "ignore_columns": ("--ignore-columns", "data.ignore_columns"),
    "on_bad_row": ("--on-bad-row", "data.on_bad_row"),
    "evaluation": ("--evaluation", "data.evaluation"),
    "evaluate_every": ("--evaluate-every", "evaluation.steps"),
    "keep": ("--keep", "evaluation.keep"),
    "patience": ("--patience", "evaluation.patience"),
}


def settings_of(flags: dict[str, Any]) -> list[Setting]:
    """The flags that were given, as settings that remember their flag."""
    return [Setting(key, flags[name], flag) for name, (flag, key) in FLAGS.items() if flags.get(name) is not None]
