"""`rankwise runs`: list the runs of this folder, and show, verify, log, rename, end or delete one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.display import Display, print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import Json, Quiet, Yes, argument, option
from rankwise.errors import ConfigError, some
from rankwise.reporting.document import facts, table
from rankwise.reporting.markup import lines_of
from rankwise.reporting.quantities import size
from rankwise.runs.listing import run_names

if TYPE_CHECKING:
    from rankwise.commands.runs import ShownRun
    from rankwise.runs.listing import ListedRun

runs = typer.Typer(
    name="runs",
    help="List the runs in this folder, or show, verify, log, rename, end or delete runs.",
    no_args_is_help=False,
)
HEADS = ("name", "status", "model", "method", "rows", "steps", "loss", "validation", "size", "ended")
LONGEST = 40
Name = Annotated[str, argument("The run's name.", autocompletion=run_names)]


@runs.callback(invoke_without_command=True)
def group(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_runs(as_json)


@runs.command("list")
def list_runs(as_json: Json = False) -> None:
    """List the runs in this folder, newest first."""
    with report_failures(as_json):
        from rankwise.commands.runs import runs as runs_command

        listing = runs_command()
        empty = ["There are no runs in runs/ yet. `rankwise train` creates one."]
        print_result(as_json, listing, *(_table(listing.runs) if listing.runs else empty))


def _table(listed: list[ListedRun]) -> list[str]:
    rows = [
        [run.name, run.status, _end(run.model or "-"), run.method or "-", _known(run.rows), _known(run.steps),
         _known(run.loss, ".4f"), _known(run.validation_loss, ".4f"), size(run.bytes),
         (run.ended or "-").replace("T", " ")[:16]]
        for run in listed
    ]  # fmt: skip
    lines = lines_of(table(HEADS, rows, words=(0, 1, 2, 3, 9)))
    return lines + [f"{run.name}: {run.problem}" for run in listed if run.status == "unreadable"]


def _end(text: str) -> str:
    return text if len(text) <= LONGEST else f"…{text[1 - LONGEST :]}"


def _known(value: float | None, form: str = ",") -> str:
    return "-" if value is None else f"{value:{form}}"


@runs.command()
def show(name: Name, as_json: Json = False) -> None:
    """Show a run's details and the contents of its folder."""
    with report_failures(as_json):
        from rankwise.commands.runs import show as show_command

        shown = show_command(name)
        print_result(as_json, shown.summary(), *_facts(shown))


def _facts(shown: ShownRun) -> list[str]:
    from rankwise.reporting.provenance import made_with
    from rankwise.reporting.training import outcome

    run, snapshot = shown.run, shown.snapshot
    known = [("folder", f"{shown.folder}, {size(run.bytes)}"), ("status", run.status), ("problem", run.problem)]
    if snapshot is not None:
        known += [*outcome(snapshot, ""), ("data", snapshot.manifest.data.path), *made_with(snapshot)]
        known += [("warning", warning) for warning in snapshot.manifest.warnings]
        if snapshot.manifest.results is None:
            known += [("steps", _known(run.steps)), ("loss", _known(run.loss, ".4f"))]
    known.append(("evaluated on", some(shown.evaluations)))
    parts = table(("", "size"), [(name, size(many)) for name, many in shown.parts.items()])
    return lines_of(facts([(name, value) for name, value in known if value]), "\n", parts)


@runs.command()
def verify(
    names: Annotated[list[str] | None, argument(
        "Run names.  [default: all runs in this folder]", autocompletion=run_names)] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Verify runs: compare every file of results and checkpoints with its recorded hash."""
    with report_failures(as_json):
        from rankwise.commands.runs import verify_runs

        verified = verify_runs(names or ())
        lines = list[str]()
        for run in verified.runs:
            unknown = "" if run.recorded else "; the result is of a version that recorded no hashes"
            verdict = "damaged" if run.problems else "whole"
            lines.append(f"{run.name}: {verdict}, {run.files} files compared{unknown}")
            lines += [f"  {problem}" for problem in run.problems]
            lines += [f"  {path} was left by a training that was killed as it ended; it is removed if no other process "
                      "writes the run" for path in run.left]  # fmt: skip
        print_result(as_json, verified.summary(), *lines)
        if not verified.is_undamaged:
            raise typer.Exit(2)


@runs.command()
def rename(
    old: Name,
    new: Annotated[str, argument("The new name.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rename a run, including its name in evaluations and reports."""
    with report_failures(as_json):
        from rankwise.commands.runs import rename_run

        with Display(quiet) as display:
            renamed = rename_run(old, new, display)
        pages = f"; rewritten: {some(renamed.pages)}" if renamed.pages else ""
        print_result(as_json, renamed, f"Renamed {renamed.old} to {renamed.new}{pages}")


@runs.command()
def log(
    name: Name,
    to: Annotated[
        str,
        option("Trackers, separated by commas: tensorboard, wandb, mlflow, trackio.", "--to"),
    ],
    project: Annotated[
        str, option("Project name (W&B, trackio) or experiment name (MLflow).", "--project")
    ] = "rankwise",
    as_json: Json = False,
) -> None:
    """Send a finished run's metrics and evaluations to experiment trackers. During training, use --log-to instead."""
    with report_failures(as_json):
        from rankwise.commands.runs import log_run
        from rankwise.config.experiment import TrackingConfig

        logged = log_run(name, TrackingConfig(log_to=to, project=project))
        print_result(
            as_json, logged.summary(), f"Logged {logged.records:,} records of {name} to {some(logged.config.log_to)}."
        )


@runs.command()
def end(name: Name, as_json: Json = False) -> None:
    """End a run early: finish the current step and save the result. (Ctrl-C saves no result.)"""
    with report_failures(as_json):
        from rankwise.commands.runs import end_run

        end_run(name)
        print_result(as_json, {"asked_to_end": name}, f"{name} was asked to end after its present step.")


@runs.command()
def delete(
    names: Annotated[list[str], argument("Run names.", autocompletion=run_names)],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete runs and everything in their folders. If one can't be deleted, none is."""
    with report_failures(as_json):
        from rankwise.commands.runs import delete_runs, deletion

        planned = deletion(names)
        confirm(f"Delete {some(planned.names)} and free {size(planned.bytes)}?", yes)
        deleted = delete_runs(names)
        print_result(as_json, deleted.summary(), f"Deleted {some(deleted.names)} and freed {size(deleted.bytes)}.")


def confirm(question: str, yes: bool) -> None:
    """Ask for confirmation. Without a terminal, only --yes confirms."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError([f"{question} There is no terminal to confirm on; add --yes."])
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)
