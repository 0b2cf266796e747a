"""`rankwise data check` and `rankwise data preview`: what rows are, and what would be learned of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankwise.cli.display import Display, print_json
from rankwise.cli.failures import failures_told
from rankwise.cli.options import (
    Evaluation,
    Format,
    Group,
    HeldOut,
    HeldOutOrder,
    Json,
    MaxLength,
    OnBadRow,
    Quiet,
    Recipe,
    Set,
    settings_of,
)
from rankwise.cli.visible import visible
from rankwise.errors import RankwiseError, SpecError, did_you_mean, some
from rankwise.run.receipt import MOST_LISTED
from rankwise.spec.data import DataSpec
from rankwise.spec.models import ModelSpec
from rankwise.spec.reading import parse_setting, read_data
from rankwise.spec.recipe import RECIPES, recipe_named

if TYPE_CHECKING:
    from rankwise.run.receipt import Receipt
    from rankwise.verbs.data import Shown

data = typer.Typer(help="Look at rows before training on them.", no_args_is_help=True)

Files = Annotated[list[str], typer.Argument(help="Files or folders of rows, or hub:organisation/name.")]
Model = Annotated[
    str | None,
    typer.Option(help="Whose tokenizer and template to use.  [default: a starter that is here]", show_default=False),
]


@data.command()
def check(
    files: Files,
    model: Model = None,
    recipe: Recipe = None,
    format: Format = None,
    max_length: MaxLength = None,
    on_bad_row: OnBadRow = None,
    held_out: HeldOut = None,
    held_out_order: HeldOutOrder = None,
    group: Group = None,
    evaluation: Evaluation = None,
    set_: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Count what the rows are; exit 2 if something in them must not be trained on."""
    flags: dict[str, Any] = dict(locals())
    with failures_told(as_json):
        spec = _spec(files, flags, set_)
        from rankwise.verbs.data import check as check_verb

        with Display(quiet) as display:
            receipt = check_verb(spec, ModelSpec(name=model) if model is not None else None, announce=display)
        if as_json:
            print_json(receipt.model_dump(mode="json"))
        else:
            _tell(receipt)
        if receipt.fatal:
            raise typer.Exit(RankwiseError.exit_code)


@data.command()
def preview(
    files: Files,
    model: Model = None,
    rows: Annotated[int, typer.Option(help="How many.", min=1)] = 3,
    first: Annotated[int, typer.Option(help="From which on.", min=1)] = 1,
    recipe: Recipe = None,
    format: Format = None,
    max_length: MaxLength = None,
    on_bad_row: OnBadRow = None,
    set_: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show rows as the model would see them, what is learned in colour."""
    flags: dict[str, Any] = {name: value for name, value in locals().items() if name not in ("rows", "first")}
    with failures_told(as_json):
        spec = _spec(files, flags, set_)
        from rankwise.verbs.data import preview as preview_verb

        asked = ModelSpec(name=model) if model is not None else None
        with Display(quiet) as display:
            shown = preview_verb(spec, asked, rows=rows, first=first, announce=display)
        if as_json:
            print_json({"rows": [one.summary() for one in shown]})
            return
        for one in shown:
            _show(one)


@data.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="One of them, whole.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """The seed recipes: what each learns, with which settings, and under which licence its data stand."""
    with failures_told(as_json):
        if name is not None and name not in RECIPES:
            raise SpecError([f'there is no recipe "{name}".{did_you_mean(name, RECIPES)} Known: {", ".join(RECIPES)}.'])
        found = [recipe_named(one) for one in ([name] if name is not None else RECIPES)]
        if as_json:
            print_json({"recipes": [recipe.model_dump(mode="json") for recipe in found]})
        elif name is not None:
            typer.echo(json.dumps(found[0].model_dump(mode="json"), indent=2, ensure_ascii=False))
        else:
            for recipe in found:
                typer.echo(f"{recipe.name:<12} {recipe.title:<28} {recipe.base.architecture:<10} {recipe.rows.licence}")


def _spec(files: list[str], flags: dict[str, Any], set_: list[str] | None) -> DataSpec:
    of_rows = {name: value for name, value in flags.items() if name != "model"}
    return read_data(files, [*settings_of(of_rows), *(parse_setting(text) for text in set_ or [])])


def _tell(receipt: Receipt) -> None:
    for file in receipt.files:
        typer.echo(f"{file.name}: {file.rows:,} rows in {file.format or 'no known'} form, licence {file.licence}")
    for name in receipt.left_aside:
        typer.echo(f"{name}: of another split, left aside")
    for label, value in _lines(receipt):
        typer.echo(f"{label:<22}{value}")
    for warning in receipt.warnings:
        typer.echo(f"note: {warning}")
    listed = receipt.skipped_rows[:5] if not receipt.fatal else ()
    for skipped in listed:
        typer.echo(f"left out: {skipped.why}")
    if listed and receipt.skipped > len(listed):
        typer.echo(f"left out: {receipt.skipped - len(listed):,} more; --json lists the first {MOST_LISTED}")
    for problem in receipt.fatal:
        typer.echo(f"fatal: {problem}")
    typer.echo("this must not be trained on" if receipt.fatal else "nothing stands against training on it")


def _lines(receipt: Receipt) -> list[tuple[str, str]]:
    why = ", ".join(f"{count:,} {reason}" for reason, count in receipt.skipped_why.items())
    apart = f", {receipt.held_out:,} to measure with" if receipt.held_out else ""
    lines = [("rows", f"{receipt.rows:,}, kept {receipt.kept:,}{apart}" + (f", left out: {why}" if why else ""))]
    if receipt.hold_out is not None:
        lines.append(("held out", receipt.hold_out.describe()))
    if receipt.labels:
        counts = some((f"{label} {count:,}" for label, count in receipt.labels.items()), 12)
        lines.append(("labels", counts))
    if receipt.evaluation is not None:
        measured = receipt.evaluation
        why = ", ".join(f"{count:,} {reason}" for reason, count in measured.skipped_why.items())
        lines.append(("rows to measure with", f"{measured.rows:,}" + (f", left out: {why}" if why else "")))
    if receipt.tokens is not None and receipt.supervised_tokens is not None:
        share = receipt.supervised_tokens / max(1, receipt.tokens)
        masks = ", ".join(f"{count:,} by {method}" for method, count in receipt.masks.items())
        lines += [
            ("tokens", f"{receipt.tokens:,}, {share:.0%} of them learned ({receipt.supervised_tokens:,})"),
            ("end of answer learned", f"in {receipt.eos_supervised:,} of {receipt.documents:,} documents"),
            ("cut to fit", f"{receipt.truncated:,}; nothing left to learn in {receipt.unsupervised:,}"),
            ("answers found", masks or "none"),
            ("asked as taught", "yes" if receipt.template_parity else f"not in {receipt.template_parity_broken:,}"),
        ]
    if receipt.lengths is not None:
        found = receipt.lengths
        lines.append((
            "length in tokens",
            f"median {found.median:,}, 90 % {found.p90:,}, 99 % {found.p99:,}, longest {found.longest:,}; "
            f"--max-length {found.suggested_max_length} would hold 99 %",
        ))  # fmt: skip
    lines.append(("said before", f"{receipt.duplicates:,} exactly, {receipt.near_duplicates:,} nearly"))
    if receipt.overlap is not None:
        both = receipt.overlap
        lines.append(("asked in training", f"{both.exact:,} exactly, {both.near:,} nearly, of {both.of:,} to measure"))
    lines.append(("strictest licence", receipt.licence))
    if receipt.template is not None:
        lines.append(("template", f"{receipt.template.kind} ({receipt.template.sha256[:12]})"))
    return lines


def _show(shown: Shown) -> None:
    """In colour on a terminal that has some; elsewhere every line says whether it is learned."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    what = f"left out: {shown.left_out}" if shown.left_out else f"{shown.supervised_tokens:,} learned"
    header = f"{visible(shown.where)}: {shown.tokens:,} tokens, {what}"
    if console.color_system is not None and not console.no_color:
        parts = ((visible(text), "black on green" if learned else "dim") for text, learned in shown.segments)
        console.print(Text(header, style="bold"), soft_wrap=True)
        console.print(Text.assemble(*parts), soft_wrap=True)
        return
    typer.echo(header)
    for text, learned in shown.segments:
        for line in text.splitlines(keepends=True):
            typer.echo(f"{'learned' if learned else 'given':<8}| {line!r}")
