"""The command group. Each command imports its code, and with it torch, only when it is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rankwise import __version__
from rankwise.cli.ask import chat, generate, predict
from rankwise.cli.classify import classify
from rankwise.cli.data import data
from rankwise.cli.display import print_json
from rankwise.cli.evaluate import compare, evaluate, report, strength
from rankwise.cli.export import OptionalAddress, export
from rankwise.cli.failures import report_failures
from rankwise.cli.inspect import inspect
from rankwise.cli.machine import cache, doctor, models
from rankwise.cli.merge import extract, merge
from rankwise.cli.options import option
from rankwise.cli.plan import advise, plan
from rankwise.cli.runs import runs
from rankwise.cli.serve import serve, studio
from rankwise.cli.settings import InPanels, write_parts
from rankwise.cli.sign import rebuild, sign, verify
from rankwise.cli.train import demo, queue, sweep, train
from rankwise.cli.watch import watch
from rankwise.cli.words import remember
from rankwise.errors import ConfigError
from rankwise.system.launched import launched

COMMANDS = {
    "Data": (data,),
    "Train": (train, classify, plan, advise, sweep, queue, demo),
    "Look": (watch, runs, inspect, evaluate, compare, report, strength),
    "Answer": (generate, chat, predict, serve, studio),
    "Ship": (export, merge, extract, sign, verify, rebuild),
    "This machine": (doctor, models, cache),
}
"""Every command, in the parts in which --help lists them."""
SHOWN_AS = dict.fromkeys((train, plan, advise, sweep), InPanels) | {export: OptionalAddress}
"""The commands that are of a class of their own."""


class Grouped(TyperGroup):
    """A group whose --help shows its commands in the parts that they are registered in, with a whole sentence each."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        parts: dict[str, list[tuple[str, str]]] = {part: [] for part in (*COMMANDS, "Commands")}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            if not command.hidden:
                parts[command.rich_help_panel or "Commands"].append((name, command.get_short_help_str(limit=200)))
        write_parts(formatter, parts)


class Commands(Grouped):
    """With --json, a usage error is one object on stdout too. Whatever a terminal has no character for is printed as an
    escape."""

    def main(
        self, args: Sequence[str] | None = None, *arguments: Any, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            if not isinstance(stream, TextIOWrapper) or stream.encoding.lower() in ("utf-8", "utf8"):
                continue
            if sys.platform == "win32" and not stream.isatty() and "PYTHONIOENCODING" not in os.environ:
                stream.reconfigure(encoding="utf-8")  # of a file or a pipe, which has the language's characters there
            elif stream is not sys.stdin:
                stream.reconfigure(errors="backslashreplace")
        words = list(sys.argv[1:] if args is None else args)
        remember(self, words)
        if not standalone_mode or "--json" not in words:
            return super().main(words, *arguments, standalone_mode=standalone_mode, **extra)
        try:
            code = super().main(words, *arguments, standalone_mode=False, **extra)
        except Exception as error:
            if not hasattr(error, "format_message"):  # typer may bundle click under another name
                raise
            mistake: Any = error
            mistake.show()
            problem = {"error": mistake.format_message(), "kind": "UsageError", "exit_code": mistake.exit_code}
            print_json(problem)
            sys.exit(mistake.exit_code)
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    name="rankwise",
    cls=Commands,
    help="Fine-tune language models with LoRA, AdaLoRA or all weights, on the machine you have.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def group(
    context: typer.Context,
    version: Annotated[bool, option("Print the version.", "--version", callback=_version, is_eager=True)] = False,
) -> None:
    if launched() is not None and context.invoked_subcommand != "train":
        with report_failures("--json" in sys.argv):
            name = context.invoked_subcommand
            raise ConfigError(
                [f"rankwise {name} runs in one process: start it without torchrun. Only train uses several."]
            )


for part, commands in COMMANDS.items():
    for command in commands:
        if isinstance(command, typer.Typer):
            app.add_typer(command, cls=Grouped, rich_help_panel=part)
        else:
            app.command(cls=SHOWN_AS.get(command), rich_help_panel=part)(command)
