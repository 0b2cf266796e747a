"""`rankwise advise`: whether to train, to prompt with examples, or neither, measured in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli.display import Display, print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import ConfigFile, Json, Quiet, option
from rankwise.cli.settings import NONE_GIVEN, ROWS, VALIDATION_ROWS, GivenSettings, takes_settings
from rankwise.config.reading import Setting, read_experiment
from rankwise.system.allocator import keep_memory

RUN = Setting("run", "advise", "rankwise advise")
"""An experiment has a name; this one leaves no run behind."""


@takes_settings(
    "model", "quantize", "memory", "data", "objective", "rank", "alpha", "dropout", "targets", "layers",
    "epochs", "steps", "batch_size", "learning_rate", "backend", *ROWS, *VALIDATION_ROWS, "seed",
    steps="Steps of the full run that advice is wanted on; advising trains a tenth of them, at least 20.",
    held_out="Number of rows to hold out for measuring.  [default: a fifth of the rows, at most 200]",
)  # fmt: skip
def advise(
    config: ConfigFile = None,
    given: GivenSettings = NONE_GIVEN,
    examples: Annotated[int, typer.Option(min=0, help="Number of training rows in the prompt.")] = 5,
    out: Annotated[Path | None, option(
        "New folder for the advice as JSON and as text.  [default: nothing is written]")] = None,
    force_memory: Annotated[bool, option(
        "Start even if the forecast says that the memory is too small.", "--force-memory")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Say whether to train on your rows, to prompt with examples, or neither."""
    with report_failures(as_json):
        experiment = read_experiment(config, [*given.read(), RUN])
        from rankwise.commands.advise import advise as advise_command
        from rankwise.runs.advice import lines_of

        keep_memory()
        with Display(quiet) as display:
            advice = advise_command(experiment, examples=examples, out=out, callback=display, force_memory=force_memory)
        print_result(as_json, advice.summary(), *lines_of(advice))
