"""The rows of a planned training: its own, and with replay others among them.

Answers of the base that are not written yet are taken to be as long as those of SmolLM2-135M-Instruct: 92 of at most
128 tokens in the mean of 64.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rankwise.config.experiment import Planned
from rankwise.config.forgetting import ANSWER_TOKENS, replay_rows
from rankwise.config.preference import read_as
from rankwise.data.instructions import instructions
from rankwise.errors import DataError
from rankwise.planning.forecast import limit_of, longest_of
from rankwise.planning.gguf_tokenizer import holds_tokenizer
from rankwise.planning.image_rows import image_rows_of
from rankwise.planning.labelled_rows import labelled_rows_of
from rankwise.planning.planned_rows import counting, rows_of
from rankwise.planning.planned_template import Around, around_of
from rankwise.planning.rows import Counted, Drawn, PlannedRows, planned_rows, together
from rankwise.planning.sequence_rows import sequence_rows_of
from rankwise.planning.shape import ModelShape
from rankwise.runs.snapshot import RunSnapshot
from rankwise.system.hub import folder_here

WRITTEN = 0.72
"""Of the tokens that an answer may have."""


def rows_of_training(config: Planned, shape: ModelShape) -> PlannedRows | None:
    """None where no data is named. DataError where no row is left to train on."""
    if config.data is None:
        return None
    named = Path(config.model.name).expanduser()
    here = named if named.is_dir() or holds_tokenizer(named) else folder_here(config.model.name)
    if shape.image is not None:
        rows = image_rows_of(config.data, shape.patches)
    else:
        data = read_as(config.data, config.objective)
        of_texts = sequence_rows_of if shape.is_encoder_decoder else rows_of
        rows = (labelled_rows_of if shape.is_classifier else of_texts)(data, here, shape.context)
    if rows.documents.likely <= 0:
        learned = "label" if shape.is_classifier else "answer"
        raise DataError(
            f"no row is left for training: every row is longer than {limit_of(config, shape):,} tokens, is a "
            f"validation row, or has no {learned} to learn. Raise --max-length, or give other rows."
        )
    return _with_replay(rows, config, here, shape)


def _with_replay(own: PlannedRows, config: Planned, model: Path | None, shape: ModelShape) -> PlannedRows:
    replay, data = config.training.replay, config.data
    if replay is None or data is None or shape.is_classifier:
        return own
    among = replay.rows_among(round(own.documents.likely))
    if replay.data is not None:
        run = replay.data.run
        source = replay_rows(replay.data, data) if run is None else RunSnapshot.read(run).data_here
        others = rows_of(source, model, shape.context)
    else:
        others = _answers(config, model, longest_of(config, shape))
    count = others.documents.likely
    if not count:
        return own
    mixed = together([own, replace(others.share(among / count), too_long=0.0)])
    return replace(mixed, replayed=float(among))


def _answers(config: Planned, model: Path | None, limit: int) -> PlannedRows:
    """The base's answers to the general instructions, one to each."""
    assert config.data is not None, "there are rows"
    count, exact = counting(model)
    around = around_of(config.data, model, count) if exact else Around()
    written = round(WRITTEN * ANSWER_TOKENS)
    lengths = [
        round(tokens + 2 * around.message + around.conversation) + written for tokens in count(instructions())
    ]  # fmt: skip
    drawn = tuple(Drawn(min(length, limit), min(written, limit), float(length)) for length in lengths)
    size = float(sum(lengths))
    return planned_rows(Counted(len(drawn), size, len(drawn), True, drawn, max(lengths), False), limit=limit)
