"""`rankwise cache` lists the cache folder, and `rankwise cache clean` removes entries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.display import print_json, print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import Json, Yes, option
from rankwise.cli.runs import confirm
from rankwise.cli.words import visible
from rankwise.reporting.quantities import plural, size

if TYPE_CHECKING:
    from rankwise.commands.cache import Cache
    from rankwise.runs.cached import Cached

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

    lines = [f"{contents.folder}: {size(contents.bytes)}"]
    for kind in [*KINDS, "other"]:
        entries = [entry for entry in contents.entries if entry.kind == kind]
        if not entries:
            continue
        about = (
            KINDS[kind].about
            if kind in KINDS
            else "not written by rankwise, or behind a link; `clean` does not remove it"
        )
        lines.append(_line(kind, len(entries), sum(one.bytes for one in entries), max(map(_used, entries)), about))
        lines += [f"  {_line(one.path.name, None, one.bytes, _used(one), one.source or '')}".rstrip()
                  for one in entries if kind in LISTED]  # fmt: skip
    return [*lines, "Models of the hub are in the hub's own cache; `hf cache` lists and removes them."]


def _line(name: str, count: int | None, amount: int, used: str, about: str) -> str:
    many = "" if count is None else plural(count, "entry", "entries")
    return f"{name:<24} {many:>14} {size(amount):>14}  last used {used}  {about}"


def _used(entry: Cached) -> str:
    return entry.last_used[:10]


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
