"""`rankwise merge`: adapters into the weights of their base, or several into one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.display import Display, print_json
from rankwise.cli.failures import report_failures
from rankwise.cli.merge_text import combined_lines, merged_lines, plan_lines
from rankwise.cli.options import BaseModel, ForceBase, ForceResult, Json, Quiet
from rankwise.cli.words import visible
from rankwise.errors import ConfigError

if TYPE_CHECKING:
    from rankwise.exporting.merging.inputs import Options


def merge(
    adapters: Annotated[list[str] | None, typer.Argument(
        help="Finished runs (names or folders) or folders of PEFT adapters.", show_default=False)] = None,
    to: Annotated[Path | None, typer.Option("--to", show_default=False,
        help="Folder to create; it must not exist yet.")] = None,
    weights: Annotated[str | None, typer.Option(show_default=False,
        help="How much of each adapter's change is taken, such as 0.7,0.3.")] = None,
    method: Annotated[str, typer.Option("--combine",
        help="How several adapters become one change. linear: weighted sum. ties: the largest numbers, where their "
        "signs agree. dare: numbers dropped at random. svd: weighted sum cut to --rank or --error.")] = "linear",
    density: Annotated[float, typer.Option(
        help="ties: the share of each layer's change, the largest numbers, that stays.")] = 0.2,
    drop: Annotated[float, typer.Option(help="dare: the probability that a number is dropped.")] = 0.5,
    seed: Annotated[int, typer.Option(help="dare: the seed of what is dropped.")] = 0,
    rank: Annotated[int | None, typer.Option(show_default=False,
        help="Cut each layer's change to the nearest one of this rank.")] = None,
    error: Annotated[float | None, typer.Option(show_default=False,
        help="Cut each layer's change to the smallest rank with this relative error.")] = None,
    strength: Annotated[float, typer.Option(help="Factor of the whole change.")] = 1.0,
    dtype: Annotated[str | None, typer.Option(show_default=False,
        help="Number format of the merged model: float32, bfloat16, float16 or float64.  [default: that of each tensor "
        "of the base]")] = None,
    onto: Annotated[str, typer.Option(
        help="Which numbers of the base the change is added to. trained: those it was trained over, quantised ones "
        "unpacked. original: the full ones. nf4, int8: quantised so, for adapters that do not say.")] = "trained",
    as_adapter: Annotated[bool, typer.Option("--as-adapter",
        help="Write an adapter instead of a model: several as one, or one with a lower rank.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be merged and write nothing.")] = False,
    base_model: BaseModel = None,
    force_base: ForceBase = False,
    force_result: ForceResult = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Merge adapters into their base model's weights, or several adapters into one."""
    with report_failures(as_json), Display(quiet) as display:
        from rankwise.commands.merge import combining_of, options_of

        combining = combining_of(method, density=density, drop=drop, seed=seed, rank=rank, error=error)
        options = options_of(
            adapters or [], _numbers(weights), combining, strength, base_model, onto, force_base=force_base,
            force_result=force_result,
        )  # fmt: skip
        if to is None and not plan:
            raise ConfigError(["name the folder to create with --to, or use --plan to only see what would be merged."])
        if as_adapter:
            _combine(options, to, display, dtype=dtype, plan=plan, as_json=as_json)
        else:
            _merge(options, to, dtype, display, plan_only=plan, as_json=as_json)


def _merge(
    options: Options, to: Path | None, dtype: str | None, display: Display, *, plan_only: bool, as_json: bool
) -> None:  # fmt: skip
    from rankwise.commands.merge import apply_plan, check_place_of_merge, plan_of

    if to is not None:
        check_place_of_merge(to)
    plan = plan_of(options, dtype, display)
    summary = plan.summary()
    if plan_only or to is None:
        print_json(summary) if as_json else typer.echo(visible("\n".join(plan_lines(summary))))
        return
    if not as_json:
        typer.echo(visible("\n".join(plan_lines(summary))))
    merged = apply_plan(plan, to, display)
    if as_json:
        from dataclasses import asdict

        print_json(summary | asdict(merged) | {"changed": summary["changed"]})
    else:
        typer.echo(visible("\n".join(merged_lines(merged))))


def _combine(
    options: Options, to: Path | None, display: Display, *, dtype: str | None, plan: bool, as_json: bool
) -> None:  # fmt: skip
    from rankwise.commands.export import check_free
    from rankwise.commands.merge import combined

    problems = ["--plan is for merging into a model; leave it out with --as-adapter."] if plan else []
    if options.onto != "trained":
        problems.append("--onto is for merging into a model; leave it out with --as-adapter.")
    if dtype is not None:
        problems.append("--dtype is for merging into a model; an adapter is written in float32.")
    if problems or to is None:
        raise ConfigError(problems or ["name the folder to create with --to."])
    check_free(to)
    result = combined(options, to, display)
    if as_json:
        from dataclasses import asdict

        print_json(asdict(result))
    else:
        typer.echo(visible("\n".join(combined_lines(result))))


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError([f'--weights "{text}" is no list of numbers, such as 0.7,0.3.']) from None
