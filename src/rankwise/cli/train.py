"""`rankwise train`: train a run with the settings of a YAML file, flags and --set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.display import Display, print_json
from rankwise.cli.failures import end_at_once, report_failures
from rankwise.cli.options import ConfigFile, Json, Quiet, Tune
from rankwise.cli.settings import NONE_GIVEN, TRAINING, GivenSettings, takes_settings
from rankwise.cli.words import visible
from rankwise.config.reading import read_experiment
from rankwise.runs.lineage import described
from rankwise.runs.manifest import Results
from rankwise.runs.row_facts import OF_PAIRS, loss_unit
from rankwise.system.allocator import keep_memory
from rankwise.system.launched import launched

if TYPE_CHECKING:
    from rankwise.commands.train import Trained


@takes_settings(*TRAINING, "shard", "log_to")
def train(
    config: ConfigFile = None,
    given: GivenSettings = NONE_GIVEN,
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
    force_base: Annotated[
        bool,
        typer.Option("--force-base", help="Train on this base model even if the adapter of --from had another one."),
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            min=1,
            show_default=False,
            help="Train with so many processes on this machine, which share the rows of each step. The result is the "
            "same but for rounding.",
        ),
    ] = None,
    tune: Tune = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a model on your rows, with an adapter or as a whole."""
    with report_failures(as_json):
        from rankwise.commands.starting import base_of_run, base_of_start

        experiment = read_experiment(config, given.read(tune), base_of_run if resume else base_of_start)
        own = launched()
        if own is None and processes is not None and processes > 1:
            from rankwise.commands.launch import launch

            end_at_once(launch(experiment, processes))
        from rankwise.commands.train import train as train_command

        keep_memory()
        with Display(quiet) as display:
            trained = train_command(
                experiment, callback=display, restart=restart, resume=resume, force_memory=force_memory,
                force_base=force_base,
            )  # fmt: skip
        if own is not None and own.rank > 0:
            return
        if as_json:
            print_json(trained.summary())
            return
        results = trained.manifest.results
        assert results is not None, "only a finished run is returned"
        _tell(trained, results)


FILE_FORMATS = {"adapter": "PEFT's format", "model": "float32, for transformers"}


def _tell(trained: Trained, results: Results) -> None:
    run, result, forecast = trained.run.folder.name, trained.result.name, trained.manifest.forecast
    typer.echo(
        f"{run}: {results.steps} steps in {results.train_seconds:.0f} s ({results.speed}), "
        f"loss {results.loss:.3f}, peak memory {results.peak_rss_bytes / 1e9:.1f} GB"
    )
    if forecast is not None:
        time = "" if forecast.seconds is None else f", {forecast.seconds:.0f} s"
        typer.echo(f"Forecast: {forecast.peak_bytes / 1e9:.1f} GB{time}.")
    if (tuning := trained.manifest.tuning) is not None and tuning.trials:
        typer.echo(f"learning rate: {tuning.learning_rate:.3g}, chosen in {tuning.seconds:.0f} s: {tuning.why}")
    if trained.manifest.lineage:
        typer.echo(f"begun with: {visible(described(trained.manifest.lineage))}")
    for one in results.earlier_rounds:
        typer.echo(visible(f"earlier round {one.describe()}"))
    if results.validation_loss_before is not None and results.validation_loss_after is not None:
        change = results.validation_loss_after - results.validation_loss_before
        typer.echo(
            f"validation loss {results.validation_loss_before:.4f} -> {results.validation_loss_after:.4f} "
            f"({change:+.4f} {loss_unit(trained.targets) if results.preference is None else OF_PAIRS})"
        )
    if results.preference is not None:
        typer.echo(results.preference.describe())
    if results.validation_accuracy_before is not None and results.validation_accuracy_after is not None:
        typer.echo(
            f"validation accuracy {results.validation_accuracy_before:.1%} -> {results.validation_accuracy_after:.1%}"
        )
        if (simpler := results.comparison) is not None:
            texts = trained.model.text is not None and "words" not in (results.baselines or {})
            typer.echo(f"for comparison: {simpler}" + "; pip install scikit-learn adds one on words" * texts)
    if results.ended_early is not None:
        typer.echo(f"stopped early: {results.ended_early}")
    if results.kept_step not in (None, results.steps):
        typer.echo(f"selected step {results.kept_step}: {results.kept_why}")
    typer.echo(f"{result}: runs/{run}/{result} ({results.adapter_bytes / 1e6:.1f} MB, {FILE_FORMATS[result]})")
    page = trained.run.page
    if page.is_file():
        typer.echo(f"report: {page}")
    typer.echo(f"next: rankwise {trained.use.format(run=run)}")
