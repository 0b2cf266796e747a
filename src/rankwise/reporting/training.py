"""The report of one run, in the order of a reader's questions: was it worth it, how did it go, can I trust it."""

from __future__ import annotations

from rankwise.reporting.classes import classes_section, sets_section
from rankwise.reporting.document import Document
from rankwise.reporting.progress import earlier_section, loss_section, ranks_section, scores_section, tuning_section
from rankwise.reporting.provenance import cost_section, data_section, environment_section
from rankwise.reporting.quality import forgetting_section, quality_section, samples_section
from rankwise.reporting.quantities import duration, figure, share, size
from rankwise.reporting.verdict import next_of, remarks_of, verdict_of
from rankwise.runs.snapshot import RunSnapshot

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
    method = {"lora": "LoRA", "adalora": "AdaLoRA", "full": "full fine-tuning"}.get(
        run.experiment.adapter.method, run.experiment.adapter.method
    )
    facts = [("model", run.manifest.base_model.name), ("method", method)]
    if results is None:
        return [*facts, ("steps", f"{len(run.history.steps):,}")]
    if results.validation_loss_before is not None and results.validation_loss_after is not None:
        before, after = figure(results.validation_loss_before), figure(results.validation_loss_after)
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
