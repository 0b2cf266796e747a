"""`rankwise cache` lists the cache folder, and `rankwise cache clean` removes entries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.display import print_json, print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import Json, Yes, option
from rankwise.cli.runs import confirm
from rankwise.cli.words import visible
from rankwise.reporting.document import table
from rankwise.reporting.markup import lines_of
from rankwise.reporting.quantities import plural, size

if TYPE_CHECKING:
    from rankwise.commands.cache import Cache

cache = typer.Typer(help="Show or clean the cache folder.", no_args_is_help=False)
LISTED = ("models", "other")
"""Kinds whose entries are listed one by one."""


@cache.callback(invoke_without_command=True)
def show(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is not None:
        return
    with report_failures(as_json):
        from rankwise.commands.cache import cache as cache_command

        contents = cache_command()
        print_result(as_json, {**vars(contents), "bytes": contents.bytes}, *_lines(contents))


def _lines(contents: Cache) -> list[str]:
    from rankwise.runs.cached import KINDS

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
        option("Kind of entries: downloads, models, rows, scores or compiled. Can be repeated.  [default: all]"),
    ] = None,
    older_than: Annotated[str | None, option("Only entries not used for this long: 36h, 30d or 2w.")] = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Remove cached files, which rankwise can create again. Files in use by a running process stay."""
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
