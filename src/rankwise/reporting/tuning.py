"""The section on how a run's learning rate was chosen by trials (`--tune`)."""

from __future__ import annotations

from rankwise.reporting.document import Section, paragraph, table
from rankwise.reporting.markup import Content
from rankwise.reporting.quantities import duration, plural
from rankwise.runs.manifest import TrialFacts
from rankwise.runs.snapshot import RunSnapshot


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
    rows = [_row(one) for one in tuning.trials if one.stage]
    heads = ("learning rate", "steps", "rows per step", "rate of the trial", "loss")
    return Section(
        "tuning", "Learning rate", data, [chosen, paragraph(cost), table(heads, rows, words=(), label="trials")],
        about="Short trials before the run chose its learning rate.",
    )  # fmt: skip


def _row(one: TrialFacts) -> list[Content]:
    loss = "diverged" if one.loss is None else f"{one.loss:.4f}"
    own = f"{one.learning_rate:.3g}"
    return [f"{one.stands_for:.3g}", f"{one.steps:,}", f"{one.batch_size:,}", own, loss]
