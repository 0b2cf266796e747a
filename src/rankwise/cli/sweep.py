"""`rankwise sweep`: train a grid of settings, or as many combinations as are asked for, and show the curve."""

from __future__ import annotations

from typing import Annotated

from rankwise.cli.display import Display, print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import ConfigFile, Json, Quiet, option
from rankwise.cli.settings import ADAPTER, IMAGES, NONE_GIVEN, ROWS, VALIDATION_ROWS, GivenSettings, takes_settings
from rankwise.config.reading import read_experiment
from rankwise.config.sweep import parse_axis
from rankwise.system.allocator import keep_memory


@takes_settings(
    "model", "quantize", "memory", "new_tokens",
    "data", "run", "objective", *IMAGES, *ADAPTER, "epochs", "steps", "batch_size",
    "learning_rate", "auto_batch", "backend", *ROWS, *VALIDATION_ROWS, "seed",
    run="Name of the sweep: the folder sweeps/NAME, and runs/NAME-001, NAME-002, … for its trials.",
)  # fmt: skip
def sweep(
    config: ConfigFile = None,
    given: GivenSettings = NONE_GIVEN,
    over: Annotated[list[str], option("A setting and its values: a list (adapter.rank=4,8,16) or a range "
        "(training.learning_rate=1e-4..1e-2). Can be repeated.", "--over")] = ...,  # pyright: ignore[reportArgumentType]
    trials: Annotated[int | None, option(
        "Number of trials, which Optuna chooses.  [default: every combination]", min=1)] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Train with several values of some settings and compare the validation losses. The same command goes on with a
    sweep that was stopped."""
    with report_failures(as_json):
        axes = [parse_axis(text) for text in over]
        settings = given.read()
        from rankwise.commands.plan import base_of_start
        from rankwise.commands.sweep import sweep as sweep_command
        from rankwise.reporting.markup import lines_of
        from rankwise.reporting.sweep import trials_table

        keep_memory()
        with Display(quiet) as display:
            swept = sweep_command(
                lambda more: read_experiment(config, [*settings, *more], base_of_start), axes, trials, callback=display
            )
        lines = [*lines_of(trials_table(swept.record)), *swept.record.conclusions()]
        print_result(as_json, swept.summary(), *lines, f"page: {swept.page}")
