"""`rankwise data`: check rows before training, preview their tokens and loss mask, and list recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.display import Display, print_json, print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import Json, Quiet, argument, option, starters
from rankwise.cli.settings import NONE_GIVEN, ROWS, VALIDATION_ROWS, GivenSettings, InPanels, takes_settings
from rankwise.cli.words import visible
from rankwise.config.models import ModelConfig
from rankwise.config.objectives import OBJECTIVES
from rankwise.config.reading import read_data
from rankwise.config.recipe import RECIPES, recipe_named
from rankwise.errors import ConfigError, RankwiseError, did_you_mean

if TYPE_CHECKING:
    from rankwise.commands.data import Shown

data = typer.Typer(
    name="data", help="Check and preview rows, write sample rows, and list recipes.", no_args_is_help=True
)

Files = Annotated[list[str], argument("Files or folders with rows, or hub:organisation/name.")]
Model = Annotated[
    str | None,
    option(
        "Model that provides the tokenizer and chat template.  [default: a downloaded starter model]",
        autocompletion=starters,
    ),
]
Objective = Annotated[
    str | None,
    option(
        "Objective of the run, such as sequence-classification.  [default: by the model and the rows]",
        autocompletion=lambda: [*OBJECTIVES],
    ),
]


@data.command(cls=InPanels)
@takes_settings(ROWS + VALIDATION_ROWS)
def check(
    files: Files,
    model: Model = None,
    objective: Objective = None,
    settings: GivenSettings = NONE_GIVEN,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check rows and report what training would use. The exit code is 2 if something must be fixed first."""
    with report_failures(as_json):
        spec = read_data(files, settings.read())
        from rankwise.commands.data import check as check_command

        with Display(quiet) as display:
            base = ModelConfig(name=model) if model is not None else None
            data_report = check_command(spec, base, objective=_known(objective), callback=display)
        from rankwise.reporting.markup import lines_of
        from rankwise.reporting.provenance import data_blocks

        print_result(as_json, data_report.model_dump(mode="json"), *lines_of(data_blocks(data_report)))
        if data_report.fatal:
            raise typer.Exit(RankwiseError.exit_code)


@data.command(cls=InPanels)
@takes_settings(ROWS)
def preview(
    files: Files,
    model: Model = None,
    objective: Objective = None,
    rows: Annotated[int | None, option("Number of rows to show.  [default: 3, or 24 images]", min=1)] = None,
    first: Annotated[
        int | None,
        option("Number of the first row to show.  [default: 1; images are sampled from all rows]", min=1),
    ] = None,
    out: Annotated[
        Path | None,
        option("For images: contact sheet to write (.png).  [default: contact_sheet.png]"),
    ] = None,
    settings: GivenSettings = NONE_GIVEN,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show rows as the model sees them, with the trained tokens in colour. Images go to a contact sheet."""
    with report_failures(as_json):
        spec = read_data(files, settings.read())
        from rankwise.commands.data import PreviewSheet
        from rankwise.commands.data import preview as preview_command

        base = ModelConfig(name=model) if model is not None else None
        with Display(quiet) as display:
            shown = preview_command(
                spec, base, rows=rows, first=first, out=out, objective=_known(objective), callback=display
            )
        if isinstance(shown, PreviewSheet):
            images = [f"{number:>3}  {one.describe()}" for number, one in enumerate(shown.rows, start=first or 1)]
            print_result(as_json, shown.summary(), *images, f"wrote {shown.path}")
        elif as_json:
            print_json({"rows": [one.summary() for one in shown]})
        else:
            for one in shown:
                _show(one)


def _known(name: str | None) -> str:
    if name is not None and name not in OBJECTIVES:
        raise ConfigError(
            [f"--objective {name}: there is no such objective.{did_you_mean(name, OBJECTIVES)} Known: "
             f"{', '.join(OBJECTIVES)}."]
        )  # fmt: skip
    return name or "auto"


@data.command()
def recipes(
    name: Annotated[str | None, argument("Recipe to show in full.", autocompletion=lambda: RECIPES)] = None,
    as_json: Json = False,
) -> None:
    """List recipes of published models such as Alpaca, or show one with its template, settings and licences."""
    with report_failures(as_json):
        if name is not None and name not in RECIPES:
            raise ConfigError(
                [f'there is no recipe "{name}".{did_you_mean(name, RECIPES)} Known: {", ".join(RECIPES)}.']
            )
        known = [recipe_named(one) for one in ([name] if name is not None else RECIPES)]
        if as_json:
            print_json({"recipes": [recipe.model_dump(mode="json") for recipe in known]})
        elif name is not None:
            typer.echo(json.dumps(known[0].model_dump(mode="json"), indent=2, ensure_ascii=False))
        else:
            for recipe in known:
                typer.echo(f"{recipe.name:<12} {recipe.title:<28} {recipe.base.architecture:<10} {recipe.rows.licence}")


@data.command()
def sample(
    name: Annotated[
        str,
        argument("tickets, replies, orders or pictures; for rows to predict, new-tickets, new-replies or new-orders."),
    ],
    out: Annotated[Path, option("File to write (.csv, .tsv, .xlsx or .jsonl), or a folder for pictures.")],
    as_json: Json = False,
) -> None:
    """Write made-up sample rows to try rankwise with: help desk messages, e-mail orders or pictures."""
    with report_failures(as_json):
        from rankwise.commands.data import sample as sample_command

        count = sample_command(name, out)
        what = "pictures" if out.is_dir() else "rows"
        print_result(as_json, {"out": out, what: count}, f"{out}: {count} {what}")


def _show(shown: Shown) -> None:
    """Print a row with its loss tokens in colour, or with a label on each line if there are no colours."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    what = f"left out: {shown.left_out}" if shown.left_out else f"{shown.loss_tokens:,} loss tokens"
    header = f"{visible(shown.where)}: {shown.tokens:,} tokens, {what}"
    if console.color_system is not None and not console.no_color:
        parts = ((visible(text), "black on green" if in_loss else "dim") for text, in_loss in shown.segments)
        console.print(Text(header, style="bold"), soft_wrap=True)
        console.print(Text.assemble(*parts), soft_wrap=True)
        return
    typer.echo(header)
    for text, in_loss in shown.segments:
        for line in text.splitlines(keepends=True):
            typer.echo(f"{'loss' if in_loss else 'prompt':<8}| {line!r}")
