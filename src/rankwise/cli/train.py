"""`rankwise train`: train a run with the settings of a YAML file, flags and --set."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rankwise.cli.display import Display, print_json
from rankwise.cli.failures import report_failures
from rankwise.cli.options import (
    CompletionColumns,
    ConfigFile,
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
from rankwise.config.reading import parse_setting, read_experiment
from rankwise.runs.directory import RunDirectory
from rankwise.runs.manifest import Forecasted, Results
from rankwise.system.allocator import keep_memory


def train(
    config: ConfigFile = None,
    model: Annotated[
        str | None, typer.Option(help="Starter name, hub id, folder or .gguf file.", show_default=False)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="File or folder of rows, or hub:organisation/name.", show_default=False),
    ] = None,
    run: Annotated[str | None, typer.Option(help="Name of the run: the folder runs/NAME.", show_default=False)] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="lora, adalora, or full: train every weight of the model, in float32.  [default: lora]",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="AdaLoRA budget: a mean rank (8), 600k parameters, or the adapter's size (2MB).  [default: 8]",
            show_default=False,
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="LoRA rank.  [default: 16]", show_default=False)] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="LoRA alpha; the adapter's change is scaled by alpha / rank.  [default: 32]", show_default=False
        ),
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(help="Dropout probability on the adapters' input.  [default: 0]", show_default=False)
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            help="Layers to adapt: all-linear, names (q_proj,v_proj) or a regular expression.  [default: all-linear]",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Blocks to adapt: 0-3,7.  [default: all]", show_default=False)
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the rows.  [default: 2]", show_default=False)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of epochs.", show_default=False)] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows per optimizer step.  [default: 16]", show_default=False)
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Highest learning rate.  [default: by the method and the model's hidden size]", show_default=False
        ),
    ] = None,
    auto_batch: Annotated[
        bool | None,
        typer.Option(
            "--auto-batch",
            help="If memory runs out, compute fewer tokens at once. The rows of a step stay the same.",
            show_default=False,
        ),
    ] = None,
    plain: Annotated[
        bool | None,
        typer.Option("--plain", help="Use the model's own code instead of the fused kernels.", show_default=False),
    ] = None,
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
    evaluate_every: Annotated[
        int | None,
        typer.Option(help="Steps between validations.  [default: a tenth of all steps]", show_default=False),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="Which checkpoint to keep: best (by validation loss) or last.  [default: last]", show_default=False
        ),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop early after N validations without improvement.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the training.  [default: 0]", show_default=False)] = None,
    set_: Set = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start an unfinished run again from its first step.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue an unfinished run from its last checkpoint, with the same settings."),
    ] = False,
    force_memory: Annotated[
        bool, typer.Option("--force-memory", help="Start even if the forecast says that the memory is too small.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a model on your rows, with an adapter or as a whole."""
    flags: dict[str, Any] = dict(locals())
    with report_failures(as_json):
        settings = [*settings_of(flags), *(parse_setting(text) for text in set_ or [])]
        experiment = read_experiment(config, settings)
        from rankwise.commands.train import train as train_command

        keep_memory()
        with Display(quiet) as display:
            trained = train_command(
                experiment, callback=display, restart=restart, resume=resume, force_memory=force_memory
            )
        if as_json:
            print_json(trained.summary())
            return
        results = trained.manifest.results
        assert results is not None, "only a finished run is returned"
        _tell(experiment.run, experiment.adapter.result, results, trained.manifest.forecast)


FILE_FORMATS = {"adapter": "PEFT's format", "model": "float32, for transformers"}


def _tell(run: str, result: str, results: Results, forecast: Forecasted | None) -> None:
    typer.echo(
        f"{run}: {results.steps} steps in {results.train_seconds:.0f} s ({results.tokens_per_second:,.0f} tokens/s), "
        f"loss {results.loss:.3f}, peak memory {results.peak_rss_bytes / 1e9:.1f} GB"
    )
    if forecast is not None:
        time = "" if forecast.seconds is None else f", {forecast.seconds:.0f} s"
        typer.echo(f"Forecast: {forecast.peak_bytes / 1e9:.1f} GB{time}.")
    if results.held_out_loss_before is not None and results.held_out_loss_after is not None:
        change = results.held_out_loss_after - results.held_out_loss_before
        typer.echo(
            f"validation loss {results.held_out_loss_before:.4f} -> {results.held_out_loss_after:.4f} "
            f"({change:+.4f} nats per loss token)"
        )
    if results.ended_early is not None:
        typer.echo(f"stopped early: {results.ended_early}")
    if results.kept_step not in (None, results.steps):
        typer.echo(f"kept step {results.kept_step}: {results.kept_why}")
    typer.echo(f"{result}: runs/{run}/{result} ({results.adapter_bytes / 1e6:.1f} MB, {FILE_FORMATS[result]})")
    page = RunDirectory.named(run).page
    if page.is_file():
        typer.echo(f"report: {page}")
    typer.echo(f"next: rankwise chat {run} --both")
