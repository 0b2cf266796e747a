"""`rankwise plan`: forecast parameters, memory, time and cost of a training without running it."""

from __future__ import annotations

from typing import Annotated

from rankwise.cli.display import print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import PROCESSES, ConfigFile, Json, Quiet, Tune, option
from rankwise.cli.settings import NONE_GIVEN, TRAINING, GivenSettings, takes_settings
from rankwise.config.reading import read_planned
from rankwise.reporting.document import table
from rankwise.reporting.markup import lines_of


@takes_settings(
    *TRAINING,
    model="Model name from the catalogue (--models), hub id, folder with a config.json, or .gguf file.",
)  # fmt: skip
def plan(
    config: ConfigFile = None,
    given: GivenSettings = NONE_GIVEN,
    device: Annotated[str | None, option(
        "Device to plan for: rtx-4090, h100, m3-max-64gb, cpu, ...  [default: this machine]")] = None,
    price: Annotated[float | None, option("Price of an hour in any currency; adds the cost to the plan.")] = None,
    probe: Annotated[bool, option(
        "Load the model and run two steps, to measure the speed instead of assuming it.", "--probe")] = False,
    processes: Annotated[int | None, option(
        "Plan for so many processes, which share the rows of each step; each has a GPU or some cores.",
        "--processes", min=1, rich_help_panel=PROCESSES)] = None,
    tune: Tune = False,
    models: Annotated[bool, option("List the models of the catalogue.", "--models")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Forecast a training: parameters, memory, time, the devices it fits on, and what to change if it does not fit."""
    with report_failures(as_json):
        if models:
            _list_models(as_json)
            return
        from rankwise.commands.plan import as_continued, base_of_start

        planned = as_continued(read_planned(config, given.read(tune), base_of_start))
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
            from rankwise.system.allocator import keep_memory

            keep_memory()
            with Display(quiet) as display:
                measured = run_probe(planned, callback=display)
        together = Processes(processes or 1)
        forecast = make_plan(planned, device=device, price=price, measured=measured, processes=together)
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
