"""`rankwise queue`: list the trainings that wait and the one that runs; add, remove or stop one."""

from __future__ import annotations

from typing import Annotated

import typer

from rankwise.cli.display import print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import ConfigFile, Json, argument, option
from rankwise.cli.settings import NONE_GIVEN, TRAINED, TRAINING, GivenSettings, InPanels, takes_settings
from rankwise.config.reading import read_experiment

queue = typer.Typer(
    help="List the trainings that wait and the one that runs; add, remove or stop one.", no_args_is_help=False
)
Name = Annotated[str, argument("The run's name.")]


@queue.callback(invoke_without_command=True)
def list_queue(context: typer.Context, as_json: Json = False) -> None:
    """List the queue. If trainings wait and none runs, as after a restart of the machine, the first one is started."""
    if context.invoked_subcommand is not None:
        return
    with report_failures(as_json):
        from rankwise.commands.runs import waiting_runs

        state = waiting_runs()
        print_result(as_json, state.summary(), *state.lines())


@queue.command(cls=InPanels)
@takes_settings(*TRAINING, "log_to")
def add(
    config: ConfigFile = None,
    given: GivenSettings = NONE_GIVEN,
    resume: Annotated[
        bool, option("Continue an unfinished run from its last checkpoint.", "--resume", rich_help_panel=TRAINED)
    ] = False,
    as_json: Json = False,
) -> None:
    """Add a training to the queue, with the settings of a YAML file, flags and --set."""
    with report_failures(as_json):
        from rankwise.commands.plan import base_of_run, base_of_start
        from rankwise.runs.queue import Queue

        experiment = read_experiment(config, given.read(), base_of_run if resume else base_of_start)
        Queue().add(experiment.run, experiment, resume=resume)
        print_result(as_json, {"added": experiment.run}, f"{experiment.run} is in the queue. rankwise queue lists it.")


@queue.command()
def remove(name: Name, as_json: Json = False) -> None:
    """Remove a training that waits."""
    with report_failures(as_json):
        from rankwise.runs.queue import Queue

        Queue().remove(name)
        print_result(as_json, {"removed": name}, f"Removed {name} from the queue.")


@queue.command()
def stop(name: Name, as_json: Json = False) -> None:
    """Stop a training as Ctrl-C does. Its run can be resumed from its last checkpoint."""
    with report_failures(as_json):
        from rankwise.runs.queue import Queue

        Queue().stop(name)
        print_result(as_json, {"stopping": name}, f"{name} was asked to stop.")


@queue.command(hidden=True)
def work() -> None:
    """Train what waits, one run after the other."""
    from rankwise.runs.queue import Queue
    from rankwise.runs.queue import work as work_through

    work_through(Queue())
