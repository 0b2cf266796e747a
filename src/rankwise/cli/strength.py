"""`rankwise strength`: what a run gains and what it forgets as its adapter is turned up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.display import Display, print_json
from rankwise.cli.failures import failures_told
from rankwise.cli.options import BaseModel, ForceBase, ForceResult, Json, Quiet, RunName, TrustCode
from rankwise.cli.visible import visible

if TYPE_CHECKING:
    from rankwise.commands.strength import Strengths
    from rankwise.runs.evaluations import StrengthCurve


def strength(
    run: RunName,
    text: Annotated[
        str | None,
        typer.Option(
            help="What it was not trained on: a text file, or rows with a text (file or hub:organisation/name).  "
            "[default: the documentation that Python carries]",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Rows of its task, never trained on.  [default: those the run held out]", show_default=False),
    ] = None,
    blocks: Annotated[int, typer.Option(help="Of 512 tokens, read of the text.")] = 16,
    base_model: BaseModel = None,
    force_base: ForceBase = False,
    force_result: ForceResult = False,
    trust_code: TrustCode = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure what a run gains and forgets at several strengths of its adapter."""
    with failures_told(as_json):
        from rankwise.commands.strength import strength as strength_verb

        with Display(quiet) as display:
            found = strength_verb(
                run, text=text, data=data, blocks=blocks, force_base=force_base, force_result=force_result,
                trust_code=trust_code, base_model=base_model, callback=display,
            )  # fmt: skip
        if as_json:
            print_json(found.summary())
        else:
            typer.echo("\n".join([*_table(found.curve), "", *_told(found), *_cautions(found)]))


def _table(curve: StrengthCurve) -> list[str]:
    """In nats. A star marks what is recommended."""
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


def _cautions(found: Strengths) -> list[str]:
    from rankwise.runs.directory import find_run
    from rankwise.runs.warnings import cautions_of_strength

    run = find_run(found.run)
    if run is None:  # an adapter's folder, of which less is known
        return []
    return cautions_of_strength(found.curve, run.experiment(), run.manifest().results)


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.4f} ({low:.4f} to {high:.4f})"


def _told(found: Strengths) -> list[str]:
    curve = found.curve
    return [
        f"task: {visible(curve.task)}, {curve.n} documents; loss and gain in nats per learned token",
        f"kept: {visible(curve.text)}; KL (base || tuned) and change in nats per token, intervals of 95 %",
        f"recommended: {curve.recommended:g}, "
        + (visible(curve.why) if curve.why else "the smallest of these that keeps 95 % of the largest gain up to 1"),
        (f"written to {visible(found.run)}/strength.json; " if found.kept else "")
        + (f"next: rankwise export {visible(found.run)} --to FOLDER --strength {curve.recommended:g}"
           if curve.recommended else ""),
    ]  # fmt: skip
