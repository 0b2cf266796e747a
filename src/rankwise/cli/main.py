"""The command group. A verb, and with it torch, is imported only when its command is called."""

from __future__ import annotations

from typing import Annotated

import typer

from rankwise import __version__
from rankwise.cli.ask import chat, generate
from rankwise.cli.data import data
from rankwise.cli.demo import demo
from rankwise.cli.doctor import doctor
from rankwise.cli.models import models
from rankwise.cli.train import train

app = typer.Typer(
    name="rankwise",
    help="Fine-tune language models with LoRA, correctly, on the machine you have.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def group(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for command in (demo, train, chat, generate, doctor):
    app.command()(command)
app.add_typer(data, name="data")
app.add_typer(models, name="models")


def run() -> None:
    """The console script."""
    app()
