"""What validation adds to a training: its rows are read before the first step, on the way and after the last, and a few
of their prompts are answered before the first step and after the last.

    read       passes x tokens of the rows, forward alone; of pairs also what they are compared with
    written    a step of decoding reads every weight, for up to 16 answers at once: as much as
               16 x WRITTEN tokens that are read
"""

from __future__ import annotations

import math

from rankwise.config.experiment import Planned
from rankwise.config.validation import WRITTEN
from rankwise.planning.rows import PlannedRows

SAMPLES, LONGEST, UNKNOWN = 3, 256, 64
"""As training/validation_prompts.py has them; a test compares both."""
AT_ONCE = 16
"""Answers that are written together."""
DIVERGENCE_PAIRS = 32
"""As training/pairs.py has it."""


def writes_answers(config: Planned) -> bool:
    """Whether prompts are answered, or rows generated, on the way."""
    settings, data = config.validation, config.data
    has_rows = data is not None and (data.may_hold_out or data.validation is not None)
    return bool(settings.prompts if settings.prompts is not None else has_rows) or bool(settings.answers and has_rows)


def validation_tokens(
    config: Planned, rows: PlannedRows | None, steps: int | None, step_tokens: float, *, writes: bool = True
) -> float:
    """All that the run's validations read, and what they write at what it costs. Rows that have a file of their own
    are answered, and their number is not known here, so they are not counted. Without `writes` it is a classifier's: no
    answers, and a second pass over the rows for the metrics."""
    data, settings = config.data, config.validation
    if rows is None or not rows.documents.likely or steps is None:
        return 0.0
    has_rows = bool(rows.held_out) or (data is not None and data.validation is not None)
    samples = len(settings.prompts) if settings.prompts is not None else SAMPLES * has_rows
    samples, answers = samples * writes, settings.answers * has_rows * writes
    read = rows.held_out * rows.tokens.likely / rows.documents.likely
    longest = 1.5 * rows.supervised.likely / rows.documents.likely + 1
    limit = settings.max_new_tokens or (min(LONGEST, longest) if has_rows else UNKNOWN)
    interval = settings.interval(steps, round(steps * step_tokens), round(read), round(answers * limit))
    passes = 1 + math.ceil(steps / interval) if has_rows else 0
    decoded = limit * (2 * math.ceil(samples / AT_ONCE) + passes * math.ceil(answers / AT_ONCE))
    read *= 1 if writes else 2
    pairs = _of_pairs(config, rows, passes, read) if config.objective == "preference" else 0.0
    return passes * read + AT_ONCE * WRITTEN * decoded + pairs


def _of_pairs(config: Planned, rows: PlannedRows, passes: int, read: float) -> float:
    """The reference reads every pair once; each validation reads some pairs by the base and by the tuned model."""
    compared = 2 * passes * read * min(1.0, DIVERGENCE_PAIRS / rows.held_out) if rows.held_out else 0.0
    return compared + (rows.tokens.likely + read if config.preference.loss == "dpo" else 0.0)
