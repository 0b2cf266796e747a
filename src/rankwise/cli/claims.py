"""`rankwise claims`: what LoRA is famous for, measured on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.display import Display, print_json
from rankwise.cli.failures import failures_told
from rankwise.cli.options import Json, Quiet
from rankwise.cli.visible import visible
from rankwise.system.allocator import keep_memory

if TYPE_CHECKING:
    from rankwise.runs.claims import Claim


def claims(
    model: Annotated[str, typer.Option(help="Starter name, hub id, folder or .gguf file.")] = "smollm2-135m",
    folder: Annotated[Path, typer.Option(help="Where finished measurements are kept.")] = Path("claims"),
    minutes: Annotated[float | None, typer.Option(min=0, show_default=False,
        help="Begin nothing after so long; the same command goes on.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Check the claims that LoRA is famous for, here; it goes on where it was stopped."""
    with failures_told(as_json):
        from rankwise.commands.claims import claims as claims_verb

        keep_memory()
        with Display(quiet) as display:
            found = claims_verb(folder, model, minutes=minutes, announce=display)
        if as_json:
            print_json(found.model_dump(mode="json"))
        else:
            for claim in found.claims:
                typer.echo(visible(_line(claim)))


def _line(claim: Claim) -> str:
    if claim.value is None:
        return f"{claim.answer:<14} {claim.claim}: {claim.why}"
    interval = "" if claim.low is None else f" ({claim.low:.4g} to {claim.high:.4g})"
    why = f"; {claim.why}" if claim.why else ""
    return f"{claim.answer:<14} {claim.claim}: {claim.value:.4g}{interval}, wanted {claim.wanted}{why}"
