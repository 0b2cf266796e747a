"""What validation adds to a training: its rows are read before the first step, on the way and after the last, and a few
of their prompts are answered before the first step and after the last.

    read       passes x tokens of the rows, forward alone; of pairs also what they are compared with
    written    a step of decoding reads every weight, for up to 16 answers at once: as much as
               16 x WRITTEN tokens that are read
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rankwise.config.experiment import Planned
from rankwise.config.validation import WRITTEN
from rankwise.planning.rows import PlannedRows

SAMPLES, LONGEST, UNKNOWN = 3, 256, 64
"""As training/validation_prompts.py has them; a test compares both."""
AT_ONCE = 16
"""Answers that are written together."""
DIVERGENCE_PAIRS = 32
"""As training/validation_pairs.py has it."""


@dataclass(frozen=True)
class Validation:
    """`tokens` are all that the run's validations read, those written among them at what they cost."""

    passes: int
    tokens: float
    writes_answers: bool


def validation_of(
    config: Planned, rows: PlannedRows | None, steps: int | None, step_tokens: float, *, writes: bool = True
) -> Validation:
    """Rows that have a file of their own are answered, and their number is not known here, so they are not counted.
    Without `writes` it is a classifier's: no answers, and a second pass over the rows for the metrics."""
    data, settings = config.data, config.validation
    count = rows.held_out if rows is not None else int(data is not None and data.may_hold_out)
    has_rows = bool(count) or (data is not None and data.validation is not None)
    samples = len(settings.prompts) if settings.prompts is not None else SAMPLES * has_rows
    samples, answers = samples * writes, settings.answers * has_rows * writes
    if rows is None or not rows.documents.likely or steps is None:
        return Validation(0, 0.0, bool(samples or answers))
    read = count * rows.tokens.likely / rows.documents.likely
    longest = 1.5 * rows.supervised.likely / rows.documents.likely + 1
    limit = settings.max_new_tokens or (min(LONGEST, longest) if has_rows else UNKNOWN)
    interval = settings.interval(steps, round(steps * step_tokens), round(read), round(answers * limit))
    passes = 1 + math.ceil(steps / interval) if has_rows else 0
    decoded = limit * (2 * math.ceil(samples / AT_ONCE) + passes * math.ceil(answers / AT_ONCE))
    if not writes:
        read *= 2
    tokens = passes * read + AT_ONCE * WRITTEN * decoded
    if config.objective == "preference":
        tokens += _of_pairs(config, rows, count, passes, read)
    return Validation(passes, tokens, bool(samples or answers))


def _of_pairs(config: Planned, rows: PlannedRows, count: int, passes: int, read: float) -> float:
    """The reference reads every pair once; each validation reads some pairs by the base and by the tuned model."""
    compared = 2 * passes * read * min(1.0, DIVERGENCE_PAIRS / count) if count else 0.0
    return compared + (rows.tokens.likely + read if config.preference.loss == "dpo" else 0.0)
