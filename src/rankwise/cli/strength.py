"""`rankwise strength`: measure gain and forgetting when the adapter's change is scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.display import Display, print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import BaseModel, ForceBase, ForceResult, Json, Quiet, RunName, TrustCode, option
from rankwise.cli.words import visible

if TYPE_CHECKING:
    from rankwise.commands.strength import Strengths
    from rankwise.runs.evaluations import StrengthCurve


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
        lines = [*_table(measured.curve), "", *_summary(measured), *_cautions(measured)]
        print_result(as_json, measured.summary(), *lines)


def _table(curve: StrengthCurve) -> list[str]:
    """The table of strengths, in nats. A star marks the recommended one."""
    base = curve.points[0].loss.value
    return [
        f"{'strength':>8}  {'loss on the task':>16}  {'gain':>7}  {'KL from the base':>24}  {'change of NLL':>13}",
        *(
            f"{point.strength:>8g}{'*' if point.strength == curve.recommended else ' '} {point.loss.value:>16.4f}  "
            f"{base - point.loss.value:>+7.4f}  {_interval(point.kl.value, point.kl.low, point.kl.high):>24}  "
            f"{point.delta_nll:>+13.4f}"
            for point in curve.points
        ),
    ]


def _cautions(measured: Strengths) -> list[str]:
    from rankwise.reporting.verdict import strength_warnings
    from rankwise.runs.directory import find_run
    from rankwise.runs.snapshot import RunSnapshot

    directory = find_run(measured.run)
    if directory is None:  # the folder of an adapter has no records of its training
        return []
    run = RunSnapshot.of(directory)
    return strength_warnings(measured.curve, run.experiment, run.manifest.results)


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.4f} ({low:.4f} to {high:.4f})"


def _summary(measured: Strengths) -> list[str]:
    curve = measured.curve
    return [
        f"task: {visible(curve.task)}, {curve.n} sequences; loss and gain in nats per loss token",
        f"forgetting: {visible(curve.text)}; KL (base || tuned) and change in nats per token, intervals of 95 %",
        f"recommended: {curve.recommended:g}, "
        + (visible(curve.why) if curve.why else "the smallest strength with 95 % of the largest gain up to 1"),
        (f"written to {visible(measured.run)}/strength.json; " if measured.stored else "")
        + (f"next: rankwise export {visible(measured.run)} --to FOLDER --strength {curve.recommended:g}"
           if curve.recommended else ""),
    ]  # fmt: skip
