"""What a run keeps of its rows in its manifest, and what it says of them before it trains."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from rankwise.rows.preparation import Prepared
from rankwise.runs.data_report import MOST_LISTED, DataReport
from rankwise.runs.manifest import DataFacts


def facts_of(prepared: Prepared) -> DataFacts:
    """What the manifest keeps beside the data report."""
    data_report = prepared.data_report
    trained = prepared.trained_rows
    hashes = [file.sha256 for file in data_report.files]
    return DataFacts(
        path=", ".join(file.name for file in data_report.files),
        sha256=hashes[0] if len(hashes) == 1 else sha256("".join(hashes).encode()).hexdigest(),
        format=data_report.format,
        rows=data_report.rows,
        training_sequences=len(trained),
        validation_sequences=len(prepared.measured),
        rows_too_long=data_report.skipped_why.get("too long", 0),
        tokens=trained.tokens,
        loss_tokens=trained.loss_count,
    )


def summary_lines(data_report: DataReport) -> Sequence[str]:
    """The data report in a few lines, printed before the training."""
    lines = [data_report.hold_out.describe()] if data_report.hold_out is not None else []
    lines += data_report.learned.summary(data_report.eos_in_loss, data_report.sequences)
    lines += [data_report.tags.describe()] if data_report.tags is not None else []
    lines += [data_report.sampling] if data_report.sampling is not None else []
    lines += [data_report.new_tokens.describe()] if data_report.new_tokens is not None else []
    if data_report.skipped:
        why = ", ".join(f"{count:,} {reason}" for reason, count in data_report.skipped_why.items())
        listed = "them" if data_report.skipped <= MOST_LISTED else f"the first {MOST_LISTED}"
        lines.append(
            f"{data_report.skipped:,} of {data_report.rows:,} rows are left out: {why}; data_report.json lists {listed}"
        )
    if (apart := data_report.validation) is not None and apart.skipped:
        why = ", ".join(f"{count:,} {reason}" for reason, count in apart.skipped_why.items())
        lines.append(
            f"{apart.skipped:,} of {apart.rows:,} validation rows are left out: {why}; data_report.json lists why"
        )
    if data_report.truncated:
        lines.append(f"{data_report.truncated:,} rows are cut or split to fit")
    lines += [f"{file.name}: {file.layout.describe()}" for file in data_report.files if file.layout is not None]
    return [*lines, f"licence of the data: {data_report.licence}"]
