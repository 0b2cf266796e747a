"""`rankwise inspect`: the ranks of an adapter's layers, how AdaLoRA arrived at them and what the numbers say; or the
layers of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.adapter_contents import adapter_lines
from rankwise.cli.display import Display, print_json
from rankwise.cli.failures import report_failures
from rankwise.cli.options import ForceResult, Json
from rankwise.cli.rank_map import Cell, rank_tables
from rankwise.cli.words import visible
from rankwise.errors import some
from rankwise.runs.lineage import described

if TYPE_CHECKING:
    from rankwise.commands.inspect import Inspected
    from rankwise.runs.integrity import Integrity
    from rankwise.runs.records import RankRecord

MOST_PLANS = 8
SHADES = ("white on grey11", "white on grey23", "white on grey35", "black on grey58", "black on grey78")


def inspect(
    name: Annotated[
        str,
        typer.Argument(
            help="A finished run (its name or folder), an adapter's folder or file, or a model: a starter, hub id, "
            "folder or .gguf file.",
            show_default=False,
            metavar="RUN|MODEL",
        ),
    ],
    force_result: ForceResult = False,
    as_json: Json = False,
) -> None:
    """Show what is inside an adapter: ranks, scales by engine, the rank that is used. Or the layers of a model."""
    with report_failures(as_json), Display() as display:
        from rankwise.commands.inspect_model import means_model

        if means_model(name):
            _inspect_model(name, as_json)
            return
        from rankwise.commands.inspect import inspect as inspect_command

        inspected = inspect_command(name, force_result=force_result, callback=display)
        if as_json:
            print_json(inspected.summary())
        else:
            _print(inspected)


def _inspect_model(name: str, as_json: bool) -> None:
    from rankwise.cli.model_layers import model_lines
    from rankwise.commands.inspect_model import inspect_model

    inspected = inspect_model(name)
    if as_json:
        print_json(inspected.summary())
    else:
        typer.echo(visible("\n".join(model_lines(inspected))))


def _print(inspected: Inspected) -> None:
    if inspected.ranks:
        _print_ranks(inspected)
    else:
        typer.echo(
            f"{visible(inspected.run)}: {inspected.label}, no adapters in any layer\n"
            f"{inspected.parameters:,} parameters, {inspected.bytes / 1e6:,.2f} MB"
        )
    if inspected.adapter is not None:
        typer.echo(visible("\n".join(["", *adapter_lines(inspected.adapter)])))
    if inspected.lineage:
        typer.echo(visible(f"begun with: {described(inspected.lineage)}"))
    if inspected.integrity is not None:
        typer.echo(visible(_verified(inspected.integrity)))


def _verified(integrity: Integrity) -> str:
    if integrity.status == "not recorded":
        return "the run has no hashes of its result files, so changes cannot be detected"
    if integrity.status == "verified":
        return f"{integrity.files:,} result files are unchanged since training (SHA-256)"
    return f"changed since training: {some([*integrity.changed, *integrity.missing, *integrity.added])}"


def _print_ranks(inspected: Inspected) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    shaded = console.color_system is not None and not console.no_color
    for table in rank_tables({visible(path): rank for path, rank in inspected.ranks.items()}):
        for row in table:
            if shaded:
                console.print(Text.assemble(*((cell.text, _shade(cell)) for cell in row)), soft_wrap=True)
            else:
                typer.echo("".join(cell.text for cell in row))
        typer.echo()
    typer.echo(
        f"{visible(inspected.run)}: {len(inspected.ranks):,} layers, total rank {inspected.total_rank:,}, "
        f"{inspected.mean_rank:.2f} on average\n{inspected.parameters:,} parameters, {inspected.bytes / 1e6:.2f} MB"
    )
    if inspected.history:
        typer.echo("\n" + "\n".join(_plans(inspected.history)))


def _shade(cell: Cell) -> str:
    return "" if cell.share is None else SHADES[min(len(SHADES) - 1, int(cell.share * len(SHADES)))]


def _plans(history: list[RankRecord]) -> list[str]:
    """The first and the last step of the pruning, and some between."""
    apart = max(1, -(-(len(history) - 1) // (MOST_PLANS - 1)))
    shown = [*history[:-1:apart], history[-1]]
    return [
        f"{'step':>8} {history[-1].unit:>22} {'mean rank':>10}",
        *(
            f"{plan.step:>8,} {f'{plan.budget:,} of {plan.of:,}':>22} {plan.mean_rank:>10.2f}"
            f"{'  final' if plan.final else ''}"
            for plan in shown
        ),
    ]
