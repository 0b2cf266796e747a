"""`rankwise models` lists models, and `rankwise models pull NAME` downloads one."""

from __future__ import annotations

from typing import Annotated

import typer

from rankwise.cli.display import Display, print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import Json, Quiet, argument, option
from rankwise.reporting.quantities import size

models = typer.Typer(
    help="List the models on this machine and the starter models; download one.", no_args_is_help=False
)


@models.callback(invoke_without_command=True)
def list_models(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is not None:
        return
    with report_failures(as_json):
        from rankwise.commands.models import known_models

        known = known_models()
        lines = []
        for model in known:
            state = f"{size(model.bytes)} cached" if model.cached else "not downloaded"
            lines.append(f"{model.name:<24} {model.kind:<10} {state:<14} {model.about}".rstrip())
        print_result(as_json, {"models": known}, *lines)


@models.command()
def pull(
    name: Annotated[str, argument("Starter name or hub id.")],
    revision: Annotated[str | None, option("Branch, tag or commit of a hub model.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Download a model into the cache."""
    with report_failures(as_json):
        from rankwise.commands.models import pull as pull_command

        with Display(quiet) as display:
            model = pull_command(name, revision, display)
        print_result(as_json, model, f"{model.name} ({model.kind}): {size(model.bytes)} in {model.about}")
