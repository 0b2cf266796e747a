"""`rankwise strength`: measure gain and forgetting when the adapter's change is scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.display import Display, print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import BaseModel, ForceBase, ForceResult, Json, Quiet, RunName, TrustCode, option

if TYPE_CHECKING:
    from rankwise.commands.strength import Strengths


def strength(
    run: RunName,
    text: Annotated[
        str | None,
        option(
            "Unrelated text to measure forgetting on: a text file, or rows with a text (file or "
            "hub:organisation/name).  [default: Python's documentation]"
        ),
    ] = None,
    data: Annotated[
        str | None,
        option("Rows of the task that were not trained on.  [default: the validation rows of the run]"),
    ] = None,
    blocks: Annotated[int, typer.Option(help="Number of blocks of 512 tokens to read from the text.")] = 16,
    base_model: BaseModel = None,
    force_base: ForceBase = False,
    force_result: ForceResult = False,
    trust_code: TrustCode = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure gain and forgetting with the adapter's change at several strengths."""
    with report_failures(as_json):
        from rankwise.commands.strength import strength as strength_command

        with Display(quiet) as display:
            measured = strength_command(
                run, text=text, data=data, blocks=blocks, force_base=force_base, force_result=force_result,
                trust_code=trust_code, base_model=base_model, callback=display,
            )  # fmt: skip
        print_result(as_json, measured.summary(), *_lines(measured), *_cautions(measured))


def _lines(measured: Strengths) -> list[str]:
    from rankwise.reporting.markup import lines_of
    from rankwise.reporting.quality import strength_blocks

    run, strength = measured.run, measured.curve.recommended
    stored = f"written to {run}/strength.json; " if measured.stored else ""
    following = f"next: rankwise export {run} --to FOLDER --strength {strength:g}" if strength else ""
    return [*lines_of(strength_blocks(measured.curve)), stored + following]


def _cautions(measured: Strengths) -> list[str]:
    from rankwise.reporting.verdict import strength_warnings
    from rankwise.runs.directory import find_run
    from rankwise.runs.snapshot import RunSnapshot

    directory = find_run(measured.run)
    if directory is None:  # the folder of an adapter has no records of its training
        return []
    run = RunSnapshot.of(directory)
    return strength_warnings(measured.curve, run.experiment, run.manifest.results)
