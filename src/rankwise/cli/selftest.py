"""`rankwise selftest`: try the reliability of trainings on this machine and disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli.display import Display, print_json
from rankwise.cli.failures import report_failures
from rankwise.cli.options import Json, Quiet


def selftest(
    minutes: Annotated[float, typer.Option(min=0.0, max=10_000.0,
        help="How long to go on. Each check is tried at least once, also where that takes longer.")] = 3.0,
    folder: Annotated[Path, typer.Option(
        help="Where to write: the disk that is to be tried.  [default: this folder]", show_default=False)] = Path(),
    seed: Annotated[int, typer.Option(min=0, help="Seed of what is done and when.")] = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Train a tiny model many times, with kills, failing disks, damaged files and rivals, and check each result.

    Nothing is fetched, and no other run is touched.
    """
    with report_failures(as_json):
        from rankwise.commands.selftest import selftest as selftest_command

        with Display(quiet) as display:
            done = selftest_command(minutes, folder, display, seed=seed)
        if as_json:
            print_json(done.summary())
        else:
            typer.echo("check       passed   what is done")
            for one in done.results:
                typer.echo(f"{one.name:<11} {one.passed:>3} of {one.tried:<3} {one.about}")
                for problem in one.problems:
                    typer.echo(f"            {problem}")
            if done.folder is not None:
                typer.echo(f"What was left is in {done.folder}.")
        if not done.passed:
            raise typer.Exit(1)
