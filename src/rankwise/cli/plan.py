"""Before a training: `rankwise plan` forecasts parameters, memory, time and cost, and `rankwise advise` measures in
minutes whether to train, to prompt with examples, or neither.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rankwise.cli.display import Display, print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import PROCESSES, ConfigFile, Json, Quiet, Tune, option
from rankwise.cli.settings import NONE_GIVEN, ROWS, TRAINING, VALIDATION_ROWS, GivenSettings, takes_settings
from rankwise.config.reading import Setting, read_experiment, read_planned
from rankwise.reporting.document import table
from rankwise.reporting.markup import lines_of
from rankwise.system.memory import keep_memory


@takes_settings(
    TRAINING,
    model="Model name from the catalogue (--models), Hugging Face id, folder with a config.json, or .gguf file.",
)  # fmt: skip
def plan(
    config: ConfigFile = None,
    settings: GivenSettings = NONE_GIVEN,
    device: Annotated[str | None, option(
        "Device to plan for, such as rtx-4090, h100, m3-max-64gb or cpu.  [default: this machine]")] = None,
    price: Annotated[float | None, option("Price of one hour, in any currency. Adds the cost to the plan.")] = None,
    probe: Annotated[bool, option(
        "Load the model and run a few steps to measure the speed instead of estimating it.", "--probe")] = False,
    processes: Annotated[int | None, option(
        "Number of processes to plan for. They share the rows of each step, and each has a GPU or some of the cores.",
        "--processes", min=1, rich_help_panel=PROCESSES)] = None,
    tune: Tune = False,
    models: Annotated[bool, option("List the models in the catalogue.", "--models")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Estimate memory, time and cost before you train: which devices fit, and what to change if yours doesn't."""
    with report_failures(as_json):
        if models:
            _list_models(as_json)
            return
        from rankwise.commands.runs import as_continued, base_of_start

        planned = as_continued(read_planned(config, settings.read(tune), base_of_start))
        from rankwise.cli.plan_text import lines_of
        from rankwise.commands.plan import plan as make_plan
        from rankwise.commands.plan import run_probe
        from rankwise.planning.devices import refuse_elsewhere
        from rankwise.planning.processes import Processes
        from rankwise.planning.summary import summary_of

        measured = None
        if probe:
            refuse_elsewhere(device)
            from rankwise.cli.display import Display
            from rankwise.system.memory import keep_memory

            keep_memory()
            with Display(quiet) as display:
                measured = run_probe(planned, callback=display)
        together = Processes(processes or 1)
        forecast = make_plan(planned, device=device, price=price, probe=measured, processes=together)
        print_result(as_json, summary_of(forecast), *lines_of(forecast))


def _list_models(as_json: bool) -> None:
    from rankwise.planning.reading import catalogue

    rows = [
        {"name": model.name, "parameters": f"{model.shape.parameters:,}", "family": model.family,
         "hub": " ".join(model.hub)} for model in catalogue().values()
    ]  # fmt: skip
    print_result(
        as_json,
        {"models": rows},
        *lines_of(table(list(rows[0]), [list(row.values()) for row in rows], words=(0, 2, 3))),
    )


RUN = Setting("run", "advise", "rankwise advise")
"""An experiment has a name; this one leaves no run behind."""


@takes_settings(
    ["model", "quantize", "memory", "data", "objective", "rank", "alpha", "dropout", "targets", "layers", "epochs",
     "steps", "batch_size", "learning_rate", "backend", *ROWS, *VALIDATION_ROWS, "seed"],
    steps="Steps of the full run you want advice about. advise trains a tenth of them, at least 20.",
    held_out="Number of rows to hold out for the comparison.  [default: a fifth of the rows, at most 200]",
)  # fmt: skip
def advise(
    config: ConfigFile = None,
    settings: GivenSettings = NONE_GIVEN,
    examples: Annotated[int, option("Number of training rows in the few-shot prompt.", min=0)] = 5,
    out: Annotated[Path | None, option(
        "New folder to write the advice to, as JSON and text.  [default: print only]")] = None,
    force_memory: Annotated[bool, option(
        "Start even if the forecast says that memory will run out.", "--force-memory")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Find out whether to fine-tune on your rows, prompt with examples (few-shot), or do neither."""
    with report_failures(as_json):
        experiment = read_experiment(config, [*settings.read(), RUN])
        from rankwise.commands.advise import advise as advise_command
        from rankwise.runs.advice import lines_of

        keep_memory()
        with Display(quiet) as display:
            advice = advise_command(experiment, examples=examples, out=out, callback=display, force_memory=force_memory)
        print_result(as_json, advice.summary(), *lines_of(advice))
