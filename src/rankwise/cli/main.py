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
from rankwise.cli.settings import Explaining, InPanels, write_parts
from rankwise.cli.sign import rebuild, sign, verify
from rankwise.cli.train import demo, queue, sweep, train
from rankwise.cli.watch import watch
from rankwise.cli.words import remember
from rankwise.errors import ConfigError
from rankwise.system.launched import launched

COMMANDS = {
    "Data": (data,),
    "Train": (train, classify, plan, advise, sweep, queue, demo),
    "Inspect": (watch, runs, inspect, evaluate, compare, report, strength),
    "Use": (generate, chat, predict, serve, studio),
    "Export": (export, merge, extract, sign, verify, rebuild),
    "This machine": (doctor, models, cache),
}
"""Every command, in the parts in which --help lists them."""
SHOWN_AS = dict.fromkeys((train, plan, advise, sweep), InPanels) | {export: OptionalAddress, serve: Explaining}
"""The commands that are of a class of their own."""
EXAMPLES = """
demo
train --model smollm2-135m --data chats.jsonl --run replies
train --model minilm --data tickets.csv --text message --label queue --run queues
train settings.yaml --prompt "{message}" --completion "{reply}" --rank 32
plan --model Qwen/Qwen3-4B --data chats.jsonl --quantize nf4 --device rtx-4090
plan settings.yaml --price 0.50
advise --model qwen-0.5b --data chats.jsonl
sweep settings.yaml --over adapter.rank=4,8,16
sweep settings.yaml --over training.learning_rate=1e-4..1e-2 --trials 10
classify tickets.csv --text message --label queue
data check tickets.csv --prompt "{message}" --completion "{reply}"
data preview chats.jsonl --model qwen-0.5b --rows 2
data sample tickets --out tickets.csv
data recipes alpaca
queue add settings.yaml --run second
queue remove second
queue stop second
watch replies
runs list
runs show replies
runs verify replies
runs rename replies replies-v1
runs log replies --to mlflow
runs end replies
runs delete replies-v1 --yes
inspect replies
inspect smollm2-135m
evaluate replies
evaluate replies --data test.csv --score exact,rouge_l
evaluate smollm2-135m --task arc_easy
compare replies replies-v2
report replies
strength replies --data test.csv
generate replies --prompt "Where is my order?"
chat replies
predict queues --data new-tickets.csv --out sorted.csv
predict replies --text "Where is my order?"
serve replies --port 8000
serve queues --host 0.0.0.0 --api-key secret
studio
export replies --to adapter
export replies --to model.gguf --format gguf --dtype q8_0
merge replies --to model
merge replies style --weights 0.7,0.3 --to both --as-adapter
extract full-run --to adapter --rank 16
sign replies --key private.pem
verify replies --key public.pem
rebuild replies --data tickets.csv
doctor
models
models pull qwen-0.5b
cache
cache clean --older-than 30d
"""
"""Calls as the end of each command's --help shows them; those of a group's commands end the group's too."""


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
    help="Fine-tune language models and classifiers with LoRA, AdaLoRA or full fine-tuning on your own machine.",
    epilog="\b\nExamples:\n  rankwise demo\n  rankwise train --help",
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
    version: Annotated[
        bool, option("Print the version and exit.", "--version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    if launched() is not None and context.invoked_subcommand != "train":
        with report_failures("--json" in sys.argv):
            name = context.invoked_subcommand
            raise ConfigError(
                [f"rankwise {name} runs in one process: start it without torchrun. Only train uses several."]
            )


def ending(words: str) -> str:
    """The last part of the --help of the command that is called by these words."""
    calls = [f"\n  rankwise {one}" for one in EXAMPLES.splitlines() if f"{one} ".startswith(f"{words} ")]
    return "\b\nExamples:" * bool(calls) + "".join(calls[:3])


for part, commands in COMMANDS.items():
    for command in commands:
        if isinstance(command, typer.Typer):
            named = command.info.name
            app.add_typer(command, cls=Grouped, rich_help_panel=part, epilog=ending(f"{named}"))
            for one in list[Any](command.registered_commands):
                one.epilog = ending(f"{named} {one.name or one.callback.__name__}")
        else:
            app.command(cls=SHOWN_AS.get(command), rich_help_panel=part, epilog=ending(command.__name__))(command)
