"""A data report as lines of text: for the terminal, and for the page."""

from __future__ import annotations

from rankwise.errors import one_line, some
from rankwise.runs.data_report import DataReport, PartFacts


def about(file: PartFacts) -> str:
    """A file and what is in it."""
    layout = f", {file.layout.describe()}" if file.layout is not None else ""
    rows = f"{file.rows:,} rows, format {file.format}" if file.format else f"unknown format, rows read: {file.rows:,}"
    return f"{file.name}: {rows}{layout}, licence {file.licence}"


def verdict_of(data_report: DataReport) -> str:
    """The last line of a report."""
    if data_report.fatal:
        return "Fix the errors above before training on these rows."
    return f"No errors found. Warnings: {len(data_report.warnings)}." if data_report.warnings else "No problems found."


def lines_of(data_report: DataReport) -> list[tuple[str, str, int]]:
    """Label, text and count of each line."""
    apart = f", {data_report.validation_rows:,} for validation" if data_report.validation_rows else ""
    left_out = _left_out(data_report.skipped_why)
    lines = [("rows", f"{data_report.rows:,} read, {data_report.used:,} used{apart}{left_out}", data_report.rows)]
    if data_report.hold_out is not None:
        lines.append(("held out", data_report.hold_out.counts(), data_report.validation_rows))
    if data_report.labels:
        counts = some((f"{one_line(label)} {count:,}" for label, count in data_report.labels.items()), 12)
        lines.append(("labels", counts, len(data_report.labels)))
    if data_report.validation is not None:
        validation = data_report.validation
        text = f"{validation.rows:,}{_left_out(validation.skipped_why)}"
        lines.append(("validation rows", text, validation.rows))
    if data_report.images is not None:
        lines += [(label, text, data_report.images.images) for label, text in data_report.images.lines()]
    if (pairs := data_report.pairs) is not None:
        lines.append(("pairs", pairs.counts(), pairs.rows))
        lines.append(("pairs to look at", pairs.doubts(), pairs.duplicates + pairs.contradictions + pairs.ties))
    lines += _token_lines(data_report)
    if data_report.lengths is not None and data_report.images is None:
        lengths = data_report.lengths
        lines.append((
            "length in tokens",
            f"median {lengths.median:,}, 90 % {lengths.p90:,}, 99 % {lengths.p99:,}, longest {lengths.longest:,}; "
            f"--max-length {lengths.suggested_max_length} is enough for 99 % of them",
            lengths.longest,
        ))  # fmt: skip
    repeated = data_report.duplicates + data_report.near_duplicates
    what = "rows" if data_report.images is None else "images"
    lines.append(
        (f"duplicate {what}", f"{data_report.duplicates:,} exact, {data_report.near_duplicates:,} near", repeated)
    )
    if data_report.overlap is not None:
        both = data_report.overlap
        text = f"{both.exact:,} exact, {both.near:,} near, of {both.of:,} validation rows"
        lines.append(("overlap with training", text, both.of))
    lines.append(("strictest licence", data_report.licence, data_report.used))
    if data_report.template is not None:
        lines.append(
            ("template", f"{data_report.template.kind} ({data_report.template.sha256[:12]})", data_report.used)
        )
    return lines


def _token_lines(data_report: DataReport) -> list[tuple[str, str, int]]:
    if data_report.tokens is None or data_report.loss_tokens is None:
        return []
    if data_report.targets is not None:
        cut = data_report.truncated or 0
        if data_report.images is not None:
            return [("targets", data_report.targets.describe(), data_report.sequences or 0)]
        tags = data_report.tags
        return [
            ("tokens", f"{data_report.tokens:,}", data_report.tokens),
            ("targets", data_report.targets.describe(), data_report.sequences or 0),
            *([("words with tags", tags.describe(), tags.words)] if tags is not None else []),
            ("truncated", f"{cut:,}", cut),
        ]
    share = data_report.loss_tokens / max(1, data_report.tokens)
    masks = ", ".join(f"{count:,} by {method}" for method, count in data_report.masks.items())
    cut, emptied = data_report.truncated or 0, data_report.without_loss_tokens or 0
    differs = data_report.template_parity_broken or 0
    prompts = "the same as in training" if data_report.template_parity else f"differs from training in {differs:,}"
    tokens = f"{data_report.tokens:,}, {share:.0%} of them in the loss ({data_report.loss_tokens:,})"
    ends = f"in {data_report.eos_in_loss:,} of {data_report.sequences:,} sequences"
    return [
        ("tokens", tokens, data_report.tokens),
        ("end token in the loss", ends, data_report.sequences or 0),
        ("truncated", f"{cut:,}; no loss tokens left in {emptied:,}", cut + emptied),
        ("answers located", masks or "none", len(data_report.masks)),
        ("inference prompt", prompts, data_report.sequences or 0),
    ]


def _left_out(reasons: dict[str, int]) -> str:
    why = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    return f", left out: {why}" if why else ""
