"""`rankwise data check` and `rankwise data preview`: what rows are, and what would be learned of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankwise.cli.display import Display, print_json
from rankwise.cli.failures import failures_told
from rankwise.cli.options import (
    CompletionColumns,
    Evaluation,
    Format,
    Group,
    HeldOut,
    HeldOutOrder,
    IgnoreColumns,
    Json,
    MaxLength,
    OnBadRow,
    PromptColumns,
    Quiet,
    Recipe,
    Set,
    SystemColumns,
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
    from rankwise.run.receipt import PartFacts, Receipt
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
    prompt: PromptColumns = None,
    completion: CompletionColumns = None,
    system: SystemColumns = None,
    ignore_columns: IgnoreColumns = None,
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
    prompt: PromptColumns = None,
    completion: CompletionColumns = None,
    system: SystemColumns = None,
    ignore_columns: IgnoreColumns = None,
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
    """What must stop a training comes first; where something does, lines that count nothing are left out."""
    for problem in receipt.fatal:
        typer.echo(f"error: {problem}")
    for advice in receipt.advice:
        typer.echo(advice)
    for file in receipt.files:
        typer.echo(_about(file))
    for name in receipt.left_aside:
        typer.echo(f"{name}: belongs to another split and is not read")
    for label, value, count in _lines(receipt):
        if count or not receipt.fatal:
            typer.echo(f"{label:<22}{value}")
    for warning in receipt.warnings:
        typer.echo(f"warning: {warning}")
    listed = receipt.skipped_rows[:5] if not receipt.fatal else ()
    for skipped in listed:
        typer.echo(f"left out: {skipped.why}")
    if listed and receipt.skipped > len(listed):
        typer.echo(f"left out: {receipt.skipped - len(listed):,} more; --json lists the first {MOST_LISTED}")
    typer.echo(_verdict(receipt))


def _about(file: PartFacts) -> str:
    layout = f", {file.layout.describe()}" if file.layout is not None else ""
    rows = f"{file.rows:,} rows, format {file.format}" if file.format else f"unknown format, rows read: {file.rows:,}"
    return f"{file.name}: {rows}{layout}, licence {file.licence}"


def _verdict(receipt: Receipt) -> str:
    if receipt.fatal:
        return "Fix the errors above before training on these rows."
    return f"No errors found. Warnings: {len(receipt.warnings)}." if receipt.warnings else "No problems found."


def _lines(receipt: Receipt) -> list[tuple[str, str, int]]:
    """A label, what it says, and what it counts."""
    apart = f", {receipt.held_out:,} for validation" if receipt.held_out else ""
    left_out = _left_out(receipt.skipped_why)
    lines = [("rows", f"{receipt.rows:,}, kept {receipt.kept:,}{apart}{left_out}", receipt.rows)]
    if receipt.hold_out is not None:
        lines.append(("held out", receipt.hold_out.counts(), receipt.held_out))
    if receipt.labels:
        counts = some((f"{label} {count:,}" for label, count in receipt.labels.items()), 12)
        lines.append(("labels", counts, len(receipt.labels)))
    if receipt.evaluation is not None:
        validation = receipt.evaluation
        text = f"{validation.rows:,}{_left_out(validation.skipped_why)}"
        lines.append(("validation rows", text, validation.rows))
    lines += _token_lines(receipt)
    if receipt.lengths is not None:
        found = receipt.lengths
        lines.append((
            "length in tokens",
            f"median {found.median:,}, 90 % {found.p90:,}, 99 % {found.p99:,}, longest {found.longest:,}; "
            f"--max-length {found.suggested_max_length} would hold 99 %",
            found.longest,
        ))  # fmt: skip
    repeated = receipt.duplicates + receipt.near_duplicates
    lines.append(("duplicate rows", f"{receipt.duplicates:,} exact, {receipt.near_duplicates:,} near", repeated))
    if receipt.overlap is not None:
        both = receipt.overlap
        text = f"{both.exact:,} exact, {both.near:,} near, of {both.of:,} validation rows"
        lines.append(("overlap with training", text, both.of))
    lines.append(("strictest licence", receipt.licence, receipt.kept))
    if receipt.template is not None:
        lines.append(("template", f"{receipt.template.kind} ({receipt.template.sha256[:12]})", receipt.kept))
    return lines


def _token_lines(receipt: Receipt) -> list[tuple[str, str, int]]:
    if receipt.tokens is None or receipt.supervised_tokens is None:
        return []
    share = receipt.supervised_tokens / max(1, receipt.tokens)
    masks = ", ".join(f"{count:,} by {method}" for method, count in receipt.masks.items())
    cut, emptied = receipt.truncated or 0, receipt.unsupervised or 0
    differs = receipt.template_parity_broken or 0
    asked = "the same as in training" if receipt.template_parity else f"differs from training in {differs:,}"
    tokens = f"{receipt.tokens:,}, {share:.0%} of them in the loss ({receipt.supervised_tokens:,})"
    ends = f"in {receipt.eos_supervised:,} of {receipt.documents:,} sequences"
    return [
        ("tokens", tokens, receipt.tokens),
        ("end token in the loss", ends, receipt.documents or 0),
        ("truncated", f"{cut:,}; no loss tokens left in {emptied:,}", cut + emptied),
        ("answers located", masks or "none", len(receipt.masks)),
        ("inference prompt", asked, receipt.documents or 0),
    ]


def _left_out(reasons: dict[str, int]) -> str:
    why = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    return f", left out: {why}" if why else ""


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
