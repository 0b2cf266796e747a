"""What is on this machine: `rankwise doctor` checks what rankwise needs, `rankwise models` lists and downloads models,
and `rankwise cache` lists and cleans the cache folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.display import Display, print_json, print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import Json, Quiet, Yes, argument, option, starters
from rankwise.cli.runs import confirm
from rankwise.cli.words import visible
from rankwise.reporting.document import table
from rankwise.reporting.markup import lines_of
from rankwise.reporting.quantities import plural, size
from rankwise.runs.cached import KINDS

if TYPE_CHECKING:
    from rankwise.commands.cache import Cache


MARKS = {"good": "ok", "note": "note", "problem": "problem"}


def doctor(as_json: Json = False) -> None:
    """Check this machine: versions, processor, memory, disk, cached models and network."""
    with report_failures(as_json):
        from rankwise.commands.doctor import doctor as doctor_command

        diagnosis = doctor_command()
        lines = [f"{MARKS[one.verdict]:<8}{one.name:<14}{one.value}{f'  ({one.remark})' * bool(one.remark)}"
                 for one in diagnosis.checks]  # fmt: skip
        print_result(as_json, diagnosis.summary(), *lines)
        if not diagnosis.able:
            raise typer.Exit(1)


models = typer.Typer(
    name="models", help="List starter models and downloaded models, or download one.", no_args_is_help=False
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
    name: Annotated[str, argument("Starter name or Hugging Face id.", autocompletion=starters)],
    revision: Annotated[str | None, option("Branch, tag or commit of a Hugging Face model.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Download a model into the cache."""
    with report_failures(as_json):
        from rankwise.commands.models import pull as pull_command

        with Display(quiet) as display:
            model = pull_command(name, revision, display)
        print_result(as_json, model, f"{model.name} ({model.kind}): {size(model.bytes)} in {model.about}")


cache = typer.Typer(name="cache", help="Show or clean the cache.", no_args_is_help=False)
LISTED = ("models", "other")
"""Kinds whose entries are listed one by one."""


@cache.callback(invoke_without_command=True)
def show(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is not None:
        return
    with report_failures(as_json):
        from rankwise.commands.cache import cache as cache_command

        contents = cache_command()
        print_result(as_json, {**vars(contents), "bytes": contents.bytes}, *_cache_lines(contents))


def _cache_lines(contents: Cache) -> list[str]:
    rows = list[list[str]]()
    for kind in [*KINDS, "other"]:
        entries = [entry for entry in contents.entries if entry.kind == kind]
        about = KINDS[kind].about if kind in KINDS else "not of rankwise, or behind a link; `clean` leaves it"
        if entries:
            used = max(entry.last_used for entry in entries)
            total = sum(entry.bytes for entry in entries)
            rows.append([kind, plural(len(entries), "entry", "entries"), size(total), used[:10], about])
        rows += [[f"  {one.path.name}", "", size(one.bytes), one.last_used[:10], one.source or ""]
                 for one in entries if kind in LISTED]  # fmt: skip
    return [
        f"{contents.folder}: {size(contents.bytes)}",
        *lines_of(table(("kind", "", "size", "last used", "about"), rows, words=(0, 4))),
        "Models of the hub are in the hub's own cache; `hf cache` lists and removes them.",
    ]


@cache.command()
def clean(
    kind: Annotated[
        list[str] | None,
        option(
            "Kind of entries to remove: downloads, models, rows, scores or compiled. Can be repeated.  [default: all]",
            autocompletion=lambda: [*KINDS],
        ),
    ] = None,
    older_than: Annotated[
        str | None, option("Remove only entries that haven't been used for this long: 36h, 30d or 2w.")
    ] = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Remove cached files. rankwise recreates them when needed. Files in use are kept."""
    with report_failures(as_json):
        from rankwise.commands.cache import clean as clean_command
        from rankwise.commands.cache import planned

        plan = planned(kind or (), older_than)
        if plan.removed:
            entries = plural(len(plan.removed), "entry", "entries")
            confirm(f"Remove {entries} of the cache and free {size(plan.bytes)}?", yes)
        cleaned = clean_command(kind or (), older_than) if plan.removed else plan
        if as_json:
            print_json(cleaned.summary())
            return
        typer.echo(f"Freed {size(cleaned.bytes)}.")
        for entry in cleaned.in_use:
            typer.echo(visible(f"Kept {entry.path}: {entry.in_use}."), err=True)
