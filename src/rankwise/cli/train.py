"""`rankwise train`: train a run with the settings of a YAML file, flags and --set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from rankwise.cli.display import Display, print_result
from rankwise.cli.failures import end_at_once, report_failures
from rankwise.cli.options import PROCESSES, ConfigFile, Json, Quiet, Tune, option
from rankwise.cli.settings import NONE_GIVEN, TRAINED, TRAINING, GivenSettings, takes_settings
from rankwise.config.reading import read_experiment
from rankwise.system.allocator import keep_memory
from rankwise.system.launched import launched

if TYPE_CHECKING:
    from rankwise.commands.train import Trained


@takes_settings(*TRAINING, "shard", "log_to")
def train(
    config: ConfigFile = None,
    given: GivenSettings = NONE_GIVEN,
    restart: Annotated[bool, option(
        "Start an unfinished run again from its first step.", "--restart", rich_help_panel=TRAINED)] = False,
    resume: Annotated[bool, option(
        "Continue an unfinished run from its last checkpoint, with the same settings.", "--resume",
        rich_help_panel=TRAINED)] = False,
    force_memory: Annotated[bool, option(
        "Start even if the forecast says that the memory is too small.", "--force-memory")] = False,
    force_base: Annotated[bool, option(
        "Train on this base model even if the adapter of --from had another one.", "--force-base")] = False,
    processes: Annotated[int | None, option(
        "Train with so many processes on this machine, which share the rows of each step. The result is the same but "
        "for rounding.", "--processes", min=1, rich_help_panel=PROCESSES)] = None,
    tune: Tune = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Fine-tune a model on your rows, with an adapter or as a whole."""
    with report_failures(as_json):
        from rankwise.commands.plan import base_of_run, base_of_start

        experiment = read_experiment(config, given.read(tune), base_of_run if resume else base_of_start)
        own = launched()
        if own is None and processes is not None and processes > 1:
            from rankwise.commands.launch import launch

            end_at_once(launch(experiment, processes))
        from rankwise.commands.train import train as train_command

        keep_memory()
        with Display(quiet) as display:
            trained = train_command(
                experiment, callback=display, restart=restart, resume=resume, force_memory=force_memory,
                force_base=force_base,
            )  # fmt: skip
        if own is not None and own.rank > 0:
            return
        print_result(as_json, trained.summary(), *_lines(trained))


def _lines(trained: Trained) -> list[str]:
    from rankwise.reporting.document import facts
    from rankwise.reporting.markup import lines_of
    from rankwise.reporting.training import outcome
    from rankwise.runs.snapshot import RunSnapshot

    run = RunSnapshot.of(trained.run)
    page = [("report", str(trained.run.page))] if trained.run.page.is_file() else []
    return lines_of(facts([
        ("run", run.name), *outcome(run), (trained.result.name, f"{trained.result}"), *page,
        ("next", f"rankwise {trained.use.format(run=run.name)}"),
    ]))  # fmt: skip
