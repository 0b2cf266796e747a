"""Trainings: `rankwise train` makes one run, `rankwise sweep` a grid of them, `rankwise queue` lists, adds, removes and
stops those that wait for one another, and `rankwise demo` trains on the rows that come with rankwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.display import Display, print_result
from rankwise.cli.failures import end_at_once, report_failures
from rankwise.cli.options import PROCESSES, ConfigFile, Json, Quiet, Tune, option
from rankwise.cli.runs import Name
from rankwise.cli.settings import (
    ADAPTER,
    IMAGES,
    NONE_GIVEN,
    ROWS,
    TRAINED,
    TRAINING,
    VALIDATION_ROWS,
    GivenSettings,
    InPanels,
    takes_settings,
)
from rankwise.config.reading import read_experiment
from rankwise.config.sweep import parse_axis
from rankwise.reporting.quantities import size
from rankwise.system.launched import launched
from rankwise.system.memory import keep_memory

if TYPE_CHECKING:
    from rankwise.commands.demo import Demo
    from rankwise.commands.train import Trained


@takes_settings([*TRAINING, "shard", "log_to"])
def train(
    config: ConfigFile = None,
    settings: GivenSettings = NONE_GIVEN,
    restart: Annotated[bool, option(
        "Start the run again from the first step. Deletes what the run has so far, including its result.", "--restart",
        rich_help_panel=TRAINED)] = False,
    resume: Annotated[bool, option(
        "Resume an unfinished run from its last checkpoint, with the same settings.", "--resume",
        rich_help_panel=TRAINED)] = False,
    force_memory: Annotated[bool, option(
        "Start even if the forecast says that memory will run out.", "--force-memory")] = False,
    force_base: Annotated[bool, option(
        "Train on this base model even if the --from adapter was trained on another one.", "--force-base")] = False,
    processes: Annotated[int | None, option(
        "Number of processes on this machine that share the rows of each step. The result is the same apart from "
        "rounding.", "--processes", min=1, rich_help_panel=PROCESSES)] = None,
    tune: Tune = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Fine-tune a model on your rows. LoRA is the default; other methods are AdaLoRA, VeRA and full fine-tuning."""
    with report_failures(as_json):
        from rankwise.commands.runs import base_of_run, base_of_start

        experiment = read_experiment(config, settings.read(tune), base_of_run if resume else base_of_start)
        own = launched()
        if own is None and processes is not None and processes > 1:
            from rankwise.commands.launch import launch

            end_at_once(launch(experiment.run, experiment.model, processes))
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


@takes_settings(
    ["model", "quantize", "memory", "new_tokens", "data", "run", "objective", *IMAGES, *ADAPTER, "epochs", "steps",
     "batch_size", "learning_rate", "auto_batch", "backend", *ROWS, *VALIDATION_ROWS, "seed"],
    run="Name of the sweep. Its folder is sweeps/NAME, and its trials are the runs NAME-001, NAME-002, …",
)  # fmt: skip
def sweep(
    config: ConfigFile = None,
    settings: GivenSettings = NONE_GIVEN,
    over: Annotated[list[str], option(
        "A setting to vary, as a list (adapter.rank=4,8,16) or a range (training.learning_rate=1e-4..1e-2). Can be "
        "repeated.", "--over")] = ...,  # pyright: ignore[reportArgumentType]
    trials: Annotated[int | None, option(
        "Number of trials, chosen by Optuna.  [default: every combination]", min=1)] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Try several values of some settings and compare the validation losses. Run the same command again to resume a
    sweep that was stopped."""
    with report_failures(as_json):
        axes = [parse_axis(text) for text in over]
        fixed = settings.read()
        from rankwise.commands.runs import base_of_start
        from rankwise.commands.sweep import sweep as sweep_command
        from rankwise.reporting.markup import lines_of
        from rankwise.reporting.sweep import trials_table

        keep_memory()
        with Display(quiet) as display:
            swept = sweep_command(
                lambda more: read_experiment(config, [*fixed, *more], base_of_start), axes, trials, callback=display
            )
        lines = [*lines_of(trials_table(swept.record)), *swept.record.conclusions()]
        print_result(as_json, swept.summary(), *lines, f"page: {swept.page}")


queue = typer.Typer(
    name="queue",
    help="Queue training runs: list, add, remove or stop them.",
    no_args_is_help=False,
)


@queue.callback(invoke_without_command=True)
def list_queue(context: typer.Context, as_json: Json = False) -> None:
    """List the queue. If runs are waiting and none is training, for example after a reboot, the first one starts."""
    if context.invoked_subcommand is not None:
        return
    with report_failures(as_json):
        from rankwise.commands.runs import waiting_runs

        state = waiting_runs()
        print_result(as_json, state.summary(), *state.lines())


@queue.command(cls=InPanels)
@takes_settings([*TRAINING, "log_to"])
def add(
    config: ConfigFile = None,
    settings: GivenSettings = NONE_GIVEN,
    resume: Annotated[
        bool, option("Resume an unfinished run from its last checkpoint.", "--resume", rich_help_panel=TRAINED)
    ] = False,
    as_json: Json = False,
) -> None:
    """Add a training run to the queue. Takes the same settings as train."""
    with report_failures(as_json):
        from rankwise.commands.runs import base_of_run, base_of_start
        from rankwise.runs.queue import Queue

        experiment = read_experiment(config, settings.read(), base_of_run if resume else base_of_start)
        Queue().add(experiment.run, experiment.explicit, resume=resume)
        print_result(as_json, {"added": experiment.run}, f"{experiment.run} is in the queue. rankwise queue lists it.")


@queue.command()
def remove(name: Name, as_json: Json = False) -> None:
    """Remove a waiting run from the queue."""
    with report_failures(as_json):
        from rankwise.runs.queue import Queue

        Queue().remove(name)
        print_result(as_json, {"removed": name}, f"Removed {name} from the queue.")


@queue.command()
def stop(name: Name, as_json: Json = False) -> None:
    """Stop a run, as Ctrl-C does. You can resume it from its last checkpoint."""
    with report_failures(as_json):
        from rankwise.runs.queue import Queue

        Queue().stop(name)
        print_result(as_json, {"stopping": name}, f"{name} was asked to stop.")


@queue.command(hidden=True)
def work() -> None:
    """Train the waiting runs one after the other."""
    from rankwise.runs.queue import Queue
    from rankwise.runs.queue import work as work_through

    work_through(Queue())


SHOWN = 3


def demo(
    model: Annotated[str, option("Starter name, Hugging Face id, folder or .gguf file.")] = "smollm2-135m",
    seed: Annotated[int, option("Training seed.")] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a small model on sample customer messages and show its answers before and after."""
    with report_failures(as_json):
        from rankwise.commands.demo import demo as demo_command

        keep_memory()
        with Display(quiet) as display:
            shown = demo_command(model, callback=display, seed=seed)
        print_result(as_json, shown.summary(), *_demo_lines(shown))


def _demo_lines(shown: Demo) -> list[str]:
    facts = shown.summary()
    rows = [
        f"\nmessage  {row.message}\nexpected {row.expected}\n"
        f"base     {_one_line(row.base)}\nadapted  {_one_line(row.adapted)}"
        for row in shown.rows[:SHOWN]
    ]
    share = facts["trainable_parameters"] / facts["total_parameters"]
    return [
        *rows,
        f"\nexact answers to {len(shown.rows)} messages with names, products and numbers that were not in the "
        "training rows:\n"
        f"  base model     {shown.base_exact:.0%}\n  with adapter   {shown.adapted_exact:.0%}\n"
        f"trained {facts['trainable_parameters']:,} parameters ({share:.2%} of {facts['total_parameters']:,}), "
        f"adapter {size(facts['adapter_bytes'])}\n"
        f"training took {facts['train_seconds']:.0f} s at {facts['tokens_per_second']:,.0f} tokens/s; "
        f"peak memory {size(facts['peak_rss_bytes'])}\n\n"
        f"next: rankwise chat {shown.run} --both\n"
        "      rankwise train --model smollm2-135m --data yours.jsonl --run my-first",
    ]


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 110 else f"{flat[:107]}..."
