"""`rankwise plan`: forecast parameters, memory, time and cost of a training without running it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rankwise.cli.display import print_json
from rankwise.cli.failures import report_failures
from rankwise.cli.options import (
    CompletionColumns,
    ConfigFile,
    Format,
    Json,
    MaxLength,
    PromptColumns,
    Quiet,
    Recipe,
    Set,
    SystemColumns,
    settings_of,
)
from rankwise.cli.visible import visible
from rankwise.config.reading import parse_setting, read_planned


def plan(
    config: ConfigFile = None,
    model: Annotated[str | None, typer.Option(show_default=False,
        help="A name of the list (--models), hub id, folder with a config.json, or .gguf file.")] = None,
    data: Annotated[str | None, typer.Option(show_default=False, help="File or folder of rows.")] = None,
    method: Annotated[str | None, typer.Option(show_default=False,
        help="lora, adalora or full (all weights).  [default: lora]")] = None,
    rank: Annotated[int | None, typer.Option(show_default=False, help="LoRA rank.  [default: 16]")] = None,
    budget: Annotated[str | None, typer.Option(show_default=False,
        help="AdaLoRA budget: a mean rank (8), 600k parameters, or the adapter's size (2MB).  [default: 8]")] = None,
    targets: Annotated[str | None, typer.Option(show_default=False,
        help="Layers to adapt: all-linear, names (q_proj,v_proj) or a regex.  [default: all-linear]")] = None,
    layers: Annotated[str | None, typer.Option(show_default=False,
        help="Blocks to adapt: 0-3,7.  [default: all]")] = None,
    epochs: Annotated[float | None, typer.Option(show_default=False,
        help="Passes over the rows.  [default: 2]")] = None,
    steps: Annotated[int | None, typer.Option(show_default=False, help="Optimizer steps, instead of epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(show_default=False,
        help="Rows per optimizer step.  [default: 16]")] = None,
    plain: Annotated[bool | None, typer.Option("--plain", show_default=False,
        help="Use the model's own code instead of the fused kernels.")] = None,
    recipe: Recipe = None,
    format: Format = None,
    prompt: PromptColumns = None,
    completion: CompletionColumns = None,
    system: SystemColumns = None,
    max_length: MaxLength = None,
    device: Annotated[str | None, typer.Option(show_default=False,
        help="Device to plan for: rtx-4090, h100, m3-max-64gb, cpu, ...  [default: this machine]")] = None,
    watts: Annotated[float | None, typer.Option(show_default=False,
        help="Power draw in watts; adds the energy to the plan.  [default: the card's limit]")] = None,
    price: Annotated[float | None, typer.Option(show_default=False,
        help="Price of an hour in any currency; adds the cost to the plan.")] = None,
    probe: Annotated[bool, typer.Option("--probe",
        help="Load the model and run two steps, to measure the speed instead of assuming it.")] = False,
    models: Annotated[bool, typer.Option("--models", help="List the models with known names.")] = False,
    set_: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Forecast a training: parameters, memory, time, the devices it fits on, and what to change if it does not fit."""
    flags: dict[str, Any] = dict(locals()) | {"device": None}
    with report_failures(as_json):
        if models:
            _list_models(as_json)
            return
        planned = read_planned(config, [*settings_of(flags), *(parse_setting(text) for text in set_ or [])])
        from rankwise.planning.plan import plan as make_plan
        from rankwise.planning.plan import refuse_elsewhere

        measured = None
        if probe:
            refuse_elsewhere(device)
            from rankwise.cli.display import Display
            from rankwise.commands.plan import probe as run_probe
            from rankwise.system.allocator import keep_memory

            keep_memory()
            with Display(quiet) as display:
                measured = run_probe(planned, callback=display)
        forecast = make_plan(planned, device=device, watts=watts, price=price, measured=measured)
        if as_json:
            print_json(forecast.summary())
        else:
            from rankwise.cli.plan_text import lines_of

            typer.echo(visible("\n".join(lines_of(forecast))))


def _list_models(as_json: bool) -> None:
    from rankwise.planning.lists import known_models

    rows = known_models()
    if as_json:
        print_json({"models": rows})
        return
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    for row in ({key: key for key in widths}, *rows):
        typer.echo("  ".join(str(row[key]).ljust(width) for key, width in widths.items()).rstrip())
