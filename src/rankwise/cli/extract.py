"""`rankwise extract`: a LoRA adapter out of a fully fine-tuned model and its base."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli.display import Display, print_json
from rankwise.cli.failures import report_failures
from rankwise.cli.merge_text import extracted_lines
from rankwise.cli.options import ForceBase, ForceResult, Json, Quiet
from rankwise.cli.words import visible


def extract(
    tuned: Annotated[str, typer.Argument(
        help="A run of full fine-tuning (name or folder), or the folder of a tuned model.", show_default=False)],
    base: Annotated[str | None, typer.Argument(
        help="The model that it was before: a folder, starter or hub name.  [default: the run's]",
        show_default=False)] = None,
    to: Annotated[Path, typer.Option("--to", show_default=False,
        help="Folder to create; it must not exist yet.")] = ...,  # pyright: ignore[reportArgumentType]
    rank: Annotated[int | None, typer.Option(show_default=False, help="The rank of every layer.")] = None,
    error: Annotated[float | None, typer.Option(show_default=False,
        help="Instead: the smallest rank of each layer that leaves out at most this share of its change, such as "
        "0.05.")] = None,
    force_base: ForceBase = False,
    force_result: ForceResult = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Extract a LoRA adapter from a fully fine-tuned model, and say how much of the change it leaves out."""
    with report_failures(as_json), Display(quiet) as display:
        from rankwise.commands.extract import extract as extract_command

        extracted = extract_command(
            tuned, to, base, rank=rank, error=error, force_base=force_base, force_result=force_result, callback=display
        )  # fmt: skip
        if as_json:
            print_json(asdict(extracted))
        else:
            typer.echo(visible("\n".join(extracted_lines(extracted))))
