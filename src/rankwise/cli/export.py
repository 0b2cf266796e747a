"""`rankwise export`: what a run trained, as a folder for others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.display import Display, print_json
from rankwise.cli.failures import failures_told
from rankwise.cli.options import BaseModel, ForceBase, ForceResult, Json, Quiet, RunName
from rankwise.cli.visible import visible

if TYPE_CHECKING:
    from rankwise.commands.export import Exported


def export(
    run: RunName,
    to: Annotated[Path, typer.Option("--to", help="Folder to make; it must not be there yet.", show_default=False)],
    format: Annotated[
        str,
        typer.Option(
            help="peft: each layer its own rank. portable: one rank and alpha, for engines that read no more. "
            "merged: the whole model, for engines that read no adapters; the only one for a run of the method full."
        ),
    ] = "peft",
    strength: Annotated[
        float,
        typer.Option(
            help="How many times its change the adapter makes: 0.5 is half of it. `rankwise strength` measures."
        ),
    ] = 1.0,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of a merged model: float32, bfloat16 or float16.  [default: that of the base, or of a full run]",
            show_default=False,
        ),
    ] = None,
    base_model: BaseModel = None,
    force_base: ForceBase = False,
    force_result: ForceResult = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write what a run trained as a folder that other programs read."""
    with failures_told(as_json), Display(quiet) as display:
        from rankwise.commands.export import export as export_verb

        exported = export_verb(
            run, to, format, strength=strength, dtype=dtype, force_base=force_base, force_result=force_result,
            base_model=base_model, callback=display,
        )  # fmt: skip
        if as_json:
            print_json(exported.summary())
        else:
            from rankwise.exporting.engines import loaded_with

            typer.echo(visible(f"{_told(exported)}\n{loaded_with(exported.format, exported.to)}"))


def _told(found: Exported) -> str:
    turned = f" at strength {found.strength:g}" if found.strength != 1 else ""
    what = f"{found.to}: {found.format}{turned}, {found.bytes / 1e6:,.1f} MB"
    if (merged := found.merged) is None:
        return f"{what}, rank {found.rank}; read back and compared: the same adapter{turned}"
    change = merged.logits_change
    return (
        f"{what} of {merged.dtype}; read back and compared: its logits differ from the trained model's by "
        f"{merged.logits_difference:.2g} of the largest ({merged.dtype} rounds a weight by up to {merged.rounding:.2g})"
        + ("" if change is None else f"; the adapter changes them by {change:.2g}")
    )
