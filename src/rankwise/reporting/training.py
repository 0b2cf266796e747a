"""The report of one run, in the order of a reader's questions: was it worth it, how did it go, can I trust it.

Here are the sections on the course of training: how the learning rate was chosen, loss, learning rate and gradient norm
by step, validation scores, earlier rounds, and ranks.
"""

from __future__ import annotations

from rankwise.reporting.charts import budget_chart, finite, left_out, loss_chart, rank_map, score_chart, small_chart
from rankwise.reporting.classes import classes_section, sets_section
from rankwise.reporting.document import Document, Section, figure, folded, listed, paragraph, table
from rankwise.reporting.markup import Content, Markup, Rows, element
from rankwise.reporting.provenance import cost_section, data_section, environment_section
from rankwise.reporting.quality import forgetting_section, quality_section, samples_section
from rankwise.reporting.quantities import duration, plural, share, size
from rankwise.reporting.quantities import figure as number
from rankwise.reporting.verdict import next_of, remarks_of, verdict_of
from rankwise.runs.manifest import TrialFacts
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
    rate = small_chart("rate", "learning rate", finite((one.step, one.learning_rate) for one in steps))
    norm = small_chart("norm", "gradient norm before clipping", finite((one.step, one.gradient_norm) for one in steps))
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
        "earlier", "Earlier rounds", [one.model_dump() for one in rounds], [listed([one.describe() for one in rounds])],
        about="The runs that this one goes on from, before its first step and after its last.",
    )  # fmt: skip


def ranks_section(run: RunSnapshot) -> Section | None:
    ranks = run.history.ranks
    if not ranks:
        return None
    last = ranks[-1]
    blocks, kinds, cells = rank_grid(last.ranks)
    heads = ("layer", *(kind or "other" for kind in kinds), "total")
    rows: Rows = [
        [block or "other", *(str(cells.get((block, kind), "\u2013")) for kind in kinds),
         f"{sum(cells.get((block, kind), 0) for kind in kinds):,}"]
        for block in blocks
    ]  # fmt: skip
    shown = [figure(rank_map(last.ranks), _about_map(last))]
    if sum(one.step > 0 for one in ranks) > 1:
        shown.append(figure(budget_chart(ranks, len(run.history.steps)), "The rank budget by step."))
    return Section(
        "ranks", "Ranks", _as_data(ranks), [*shown, folded("Ranks as numbers", table(heads, rows, label="ranks"))],
        about="The ranks of all layers. A layer that kept a higher rank needed more change for this task.",
    )  # fmt: skip


def _as_data(ranks: list[RankRecord]) -> dict[str, object]:
    """Return the budget over time and the final rank of each layer."""
    plans = [{key: value for key, value in one.as_row().items() if key != "ranks"} for one in ranks]
    return {"ranks": ranks[-1].ranks, "mean_rank": ranks[-1].mean_rank, "plans": plans}


def _about_map(last: RankRecord) -> str:
    empty = sum(rank == 0 for rank in last.ranks.values())
    when = "Before training" if last.step == 0 else f"After step {last.step:,}{', final' if last.final else ''}"
    return (
        f"{when}: {sum(last.ranks.values()):,} ranks over {plural(len(last.ranks), 'layer')}, {last.mean_rank:.2f} on "
        f"average; budget {last.budget:,} of {last.of:,} {last.unit}."
        + (f" {plural(empty, 'layer has', 'layers have')} none left." if empty else "")
        + left_out(last.ranks)
    )


def tuning_section(run: RunSnapshot) -> Section | None:
    tuning = run.manifest.tuning
    if tuning is None:
        return None
    data = tuning.model_dump(mode="json")
    chosen = paragraph(f"The learning rate is {tuning.learning_rate:.3g}: {tuning.why}.")
    if not tuning.trials:
        return Section("tuning", "Learning rate", data, [chosen])
    apart = "validation rows" if tuning.rows_from == "validation" else "training rows that the trials set aside"
    foreseen = "" if tuning.forecast_seconds is None else f"; the forecast was {duration(tuning.forecast_seconds)}"
    cost = (
        f"{plural(len(tuning.trials), 'trial')} took {duration(tuning.seconds)}, as long as {tuning.steps:.0f} steps "
        f"by the number of tokens{foreseen}. They were measured on {tuning.rows:,} {apart}."
    )
    rows = [_trial_row(one) for one in tuning.trials if one.stage]
    heads = ("learning rate", "steps", "rows per step", "rate of the trial", "loss")
    return Section(
        "tuning", "Learning rate", data, [chosen, paragraph(cost), table(heads, rows, words=(), label="trials")],
        about="Short trials before the run chose its learning rate.",
    )  # fmt: skip


def _trial_row(one: TrialFacts) -> list[Content]:
    loss = "diverged" if one.loss is None else f"{one.loss:.4f}"
    own = f"{one.learning_rate:.3g}"
    return [f"{one.stands_for:.3g}", f"{one.steps:,}", f"{one.batch_size:,}", own, loss]


SECTIONS = (
    loss_section, tuning_section, scores_section, earlier_section, quality_section, classes_section, sets_section,
    forgetting_section, samples_section, ranks_section, data_section, cost_section, environment_section,
)  # fmt: skip


def training_report(run: RunSnapshot) -> Document:
    sections = [built for section in SECTIONS if (built := section(run)) is not None]
    return Document(
        title=run.name, over="rankwise report", verdict=verdict_of(run), remarks=remarks_of(run), next=next_of(run),
        key_facts=_key_facts(run), sections=sections,
    )  # fmt: skip


def _key_facts(run: RunSnapshot) -> list[tuple[str, str]]:
    results = run.manifest.results
    facts = [("model", run.manifest.base_model.name), ("method", run.experiment.adapter.label)]
    if results is None:
        return [*facts, ("steps", f"{len(run.history.steps):,}")]
    if results.validation_loss_before is not None and results.validation_loss_after is not None:
        before, after = number(results.validation_loss_before), number(results.validation_loss_after)
        facts.append(("validation loss", f"{before} \u2192 {after}"))
    if results.validation_accuracy_before is not None and results.validation_accuracy_after is not None:
        right = [f"{100 * one:.1f}" for one in (results.validation_accuracy_before, results.validation_accuracy_after)]
        facts.append(("validation accuracy", f"{right[0]} \u2192 {right[1]} %"))
        facts += [] if results.comparison is None else [("for comparison", results.comparison)]
    if (pairs := results.preference) is not None:
        right = f"{100 * pairs.accuracy_before:.1f} \u2192 {100 * pairs.accuracy_after.value:.1f} %"
        facts.append(("preference accuracy", right))
    if (budget := results.budget) is not None:
        facts.append(("forgotten, nats per token", f"{budget.divergence:.4f} of {budget.forget_at_most:g} allowed"))
    if (kept := results.accuracy_budget) is not None:
        facts.append(("accuracy lost, percentage points", f"{kept.lost:.1f} of {kept.points:g} allowed"))
    return [
        *facts,
        ("trainable", share(results.trainable_parameters, results.total_parameters)),
        ("saved file size", size(results.adapter_bytes)),
        ("time", duration(results.train_seconds)),
        ("peak memory", size(results.peak_rss_bytes)),
    ]
