"""The report of one run, in the order of a reader's questions: was it worth it, how did it go, can I trust it.

Here are the sections on the course of training: how the learning rate was chosen, loss, learning rate and gradient norm
by step, validation scores, earlier rounds, and ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

from rankwise.reporting.charts import budget_chart, finite, loss_chart, score_chart, small_chart
from rankwise.reporting.classes import classes_section, sets_section
from rankwise.reporting.document import Document, Section, code, figure, folded, listed, matrix, paragraph, table
from rankwise.reporting.markup import Markup, Rows, element
from rankwise.reporting.provenance import cost_section, data_section, environment_section
from rankwise.reporting.quality import forgetting_section, quality_section, samples_section
from rankwise.reporting.quantities import duration, share, size
from rankwise.reporting.quantities import figure as number
from rankwise.reporting.verdict import next_of, remarks_of, verdict_of
from rankwise.runs.lineage import described
from rankwise.runs.manifest import Manifest, Results, Tuning
from rankwise.runs.records import LossRecord, RankRecord, rank_grid
from rankwise.runs.snapshot import RunSnapshot


def loss_section(run: RunSnapshot) -> Section:
    steps, losses, unit = run.history.steps, run.history.losses, run.learned.loss_unit
    columns = ("step", "loss", "learning_rate", "gradient_norm", "tokens", "seconds")
    rows = [one.as_row() for one in steps]
    data = {name: [row[name] for row in rows] for name in columns} | {"validation": [one.as_row() for one in losses]}
    if len(steps) < 2:
        only = f"The only step had a loss of {number(steps[0].loss)} {unit}." if steps else ""
        sentence = only or "No step was recorded."
        return Section("loss", "Loss", data, [paragraph(sentence), *([_held_out(losses)] if losses else [])])
    rate = small_chart("learning rate", finite((one.step, one.learning_rate) for one in steps))
    norm = small_chart("gradient norm before clipping", finite((one.step, one.gradient_norm) for one in steps))
    clip = run.experiment.training.clip
    caption = (
        "Loss of each step (thin) and its average over about a twentieth of the run (thick).  "
        + ("Dots are validation losses. " if losses else "There are no validation rows. ")
        + f"Gradients are clipped at a norm of {clip:g}."
    )
    return Section(
        "loss", "Loss", data,
        [figure(loss_chart(steps, losses, unit), caption),
         element("div", figure(rate), figure(norm), class_="small-charts"),
         *([folded("Held-out losses", _held_out(losses))] if losses else [])],
    )  # fmt: skip


def _held_out(losses: list[LossRecord]) -> Markup:
    rows: Rows = [[f"{one.step:,}", number(one.loss), f"{one.loss_tokens:,}", f"{one.sequences:,}"] for one in losses]
    return table(("step", "loss", "loss tokens", "sequences"), rows, label="validation losses")


def scores_section(run: RunSnapshot) -> Section | None:
    scores = run.history.scores
    if not scores:
        return None
    rows: Rows = [[f"{one.step:,}", one.metric, number(one.value), f"{one.n:,}"] for one in scores]
    heads = ("step", "metric", "score", "n")
    return Section(
        "scores", "Scores during training", [one.as_row() for one in scores],
        [figure(score_chart(scores)), folded("All scores", table(heads, rows, words=(1,), label="scores"))],
        about="Scores on validation rows during training, without intervals. For intervals, run rankwise evaluate.",
    )  # fmt: skip


def earlier_section(run: RunSnapshot) -> Section | None:
    """What became of the runs that this one goes on from."""
    results = run.manifest.results
    rounds = results.earlier_rounds if results is not None else ()
    if not rounds:
        return None
    return Section(
        "earlier", "Earlier rounds", rounds, [listed([one.describe() for one in rounds])],
        about="The runs that this one goes on from, before its first step and after its last.",
    )  # fmt: skip


def ranks_section(run: RunSnapshot) -> Section | None:
    ranks = run.history.ranks
    if not ranks:
        return None
    last = ranks[-1]
    shown = [figure(rank_map(last.ranks), f"{last.describe()}.")]
    if sum(one.step > 0 for one in ranks) > 1:
        shown.append(figure(budget_chart(ranks, len(run.history.steps)), "The rank budget by step."))
    return Section(
        "ranks", "Ranks", _as_data(ranks), shown,
        about="The ranks of all layers, darker where more rank remains. A layer that kept a higher rank needed more "
        "change for this task.",
    )  # fmt: skip


def rank_map(ranks: dict[str, int]) -> Markup:
    """A row for each block, a column for each kind of layer, and sums."""
    blocks, kinds, cells = rank_grid(ranks)
    largest = max([*ranks.values(), 1])

    def cell(row: int, column: int) -> tuple[str, float, str] | None:
        of_blocks, of_kinds = blocks[row : row + 1] or blocks, kinds[column : column + 1] or kinds
        found = [cells[pair] for pair in product(of_blocks, of_kinds) if pair in cells]
        kind = "hit" if row < len(blocks) and column < len(kinds) else "sum"
        return (f"{sum(found):,}", sum(found) / largest, kind) if found else None

    rows, columns = ([*(name or "other" for name in names), "total"] for names in (blocks, kinds))
    return matrix(rows, columns, cell, "rank map", "layer")


def _as_data(ranks: list[RankRecord]) -> dict[str, object]:
    """Return the budget over time and the final rank of each layer."""
    plans = [{key: value for key, value in one.as_row().items() if key != "ranks"} for one in ranks]
    return {"ranks": ranks[-1].ranks, "mean_rank": ranks[-1].mean_rank, "plans": plans}


def tuning_section(run: RunSnapshot) -> Section | None:
    tuning = run.manifest.tuning
    if tuning is None:
        return None
    chosen, *trials = tuning.lines()
    if not trials:
        return Section("tuning", "Learning rate", tuning, [paragraph(f"{chosen}.")])
    apart = "validation rows" if tuning.rows_from == "validation" else "training rows that the trials set aside"
    foreseen = "" if tuning.forecast_seconds is None else f"; the forecast was {duration(tuning.forecast_seconds)}"
    cost = (
        f"They took {duration(tuning.seconds)}, as long as {tuning.steps:.0f} steps by the number of tokens{foreseen}, "
        f"and were measured on {tuning.rows:,} {apart}."
    )
    return Section(
        "tuning", "Learning rate", tuning, [paragraph(f"{chosen}. {cost}"), code("\n".join(trials))],
        about="Short trials before the run chose its learning rate.",
    )  # fmt: skip


SECTIONS = (
    loss_section, tuning_section, scores_section, earlier_section, quality_section, classes_section, sets_section,
    forgetting_section, samples_section, ranks_section, data_section, cost_section, environment_section,
)  # fmt: skip


def training_report(run: RunSnapshot) -> Document:
    sections = [built for section in SECTIONS if (built := section(run)) is not None]
    return Document(
        title=run.name, over="rankwise report", verdict=verdict_of(run), remarks=remarks_of(run), next=next_of(run),
        key_facts=outcome(run), sections=sections,
    )  # fmt: skip


def outcome(run: RunSnapshot, unit: str | None = None) -> list[tuple[str, str]]:
    """What became of a run, as its report, its page in the studio and the terminal show it. `unit` is that of the loss;
    with one nothing but the manifest and the settings is read."""
    results = run.manifest.results
    known = [("model", run.manifest.base_model.name), ("method", run.experiment.adapter.label)]
    if results is None:
        last = run.history.steps[-1:] if unit is None else []
        return [*known, *(("steps", f"{one.step:,} of {one.steps:,}, loss {one.loss:.3f}") for one in last)]
    found = _finished(run.manifest, results, run.learned.loss_unit if unit is None else unit)
    return [*known, *((name, value) for name, value in found if value)]


def _finished(manifest: Manifest, results: Results, unit: str) -> list[tuple[str, str | None]]:
    forecast = manifest.forecast
    time = _forecast_note(forecast and forecast.train_seconds, duration)
    return [
        ("steps", f"{results.steps:,}"), ("time", f"{duration(results.train_seconds)}{time}"),
        ("speed", results.speed),
        ("loss", f"{results.loss:.3f}"),
        ("learning rate", _tuned(manifest.tuning)),
        ("begun with", described(manifest.lineage, short=True)),
        *(("earlier round", one.describe()) for one in results.earlier_rounds),
        ("validation loss", _changed(results.validation_loss_before, results.validation_loss_after, ".4f",
                                     f" {unit}")),
        ("pairs", results.preference and results.preference.describe()),
        ("validation accuracy", _changed(results.validation_accuracy_before, results.validation_accuracy_after, ".1%")),
        ("for comparison", results.comparison),
        ("stopped early", results.ended_early),
        ("selected step", None if results.kept_why in (None, "the last step") else
         f"{results.kept_step}: {results.kept_why}"),
        *_budgets(results),
        ("trained parameters", f"{results.trainable_parameters:,} of {results.total_parameters:,} "
         f"({share(results.trainable_parameters, results.total_parameters)})"),
        ("saved file size", size(results.adapter_bytes)),
        ("peak memory", size(results.peak_rss_bytes) + _forecast_note(forecast and forecast.peak_bytes, size)),
    ]  # fmt: skip


def _forecast_note(value: float | None, form: Callable[[float], str]) -> str:
    return "" if value is None else f" (forecast {form(value)})"


def _tuned(tuning: Tuning | None) -> str | None:
    if tuning is None or not tuning.trials:
        return None
    return f"{tuning.learning_rate:.3g}, chosen in {duration(tuning.seconds)}: {tuning.why}"


def _changed(before: float | None, after: float | None, form: str, unit: str = "") -> str | None:
    return None if before is None or after is None else f"{before:{form}} -> {after:{form}}{unit}"


def _budgets(results: Results) -> Iterator[tuple[str, str]]:
    if (budget := results.budget) is not None:
        yield "forgotten", f"{budget.divergence:.4f} of {budget.forget_at_most:g} nats per token allowed"
    if (kept := results.accuracy_budget) is not None:
        yield "accuracy lost", f"{kept.lost:.1f} of {kept.points:g} percentage points allowed"
