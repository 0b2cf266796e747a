"""What a run keeps of its rows in its manifest."""

from __future__ import annotations

from hashlib import sha256

from rankwise.rows.preparation import Prepared
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
