"""How a run is measured while it trains, what may end it early, and which of its steps is kept.

Rows to measure with are the data's to name (data.held_out, data.evaluation). Reading them costs about half of learning
from as many, and every run with such rows reads them before its first step and after its last. What comes between is by
default so little that it takes at most a tenth of the run; whoever asks for a choice (keep, patience) asks for the
evaluations that it needs.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rankwise.config.base import Config, PositiveInt

TextMetric = Literal["exact", "number", "json", "rouge_1", "rouge_2", "rouge_l", "bleu", "chrf"]
OF_ROWS = ("steps", "keep", "patience", "by", "scores", "answers")
TIMES = 10
READ_SHARE = 0.2
"""Of the tokens trained on, what may be read between the first and the last step: half of a fifth is a tenth."""
WRITTEN = 12
"""A token that is written costs as much time as so many that are read (16 answers at once, two cores)."""


class ValidationConfig(Config):
    steps: PositiveInt | None = None
    """Optimizer steps from one evaluation to the next; the last step is always one. By default ten evaluations, or
    fewer where the held-out rows are many, so that together they read at most a fifth of the tokens trained on."""
    keep: Literal["last", "best"] = "last"
    """Of which step the adapter is kept: the last, or the evaluated one with the lowest held-out loss, or the highest
    score where `by` is a metric. AdaLoRA is judged once its ranks are decided: until then there is more of it."""
    patience: PositiveInt | None = None
    """Evaluations in a row that are no better than the best before them, after which the run ends."""
    by: Literal["loss", TextMetric] = "loss"
    """What `keep` and `patience` go by."""
    scores: tuple[TextMetric, ...] = ()
    """Metrics of the answers to held-out rows, at each evaluation, beside `by`."""
    answers: Annotated[int, Field(ge=0, strict=True)] = 0
    """How many held-out rows are answered for these at each evaluation, always with the likeliest token."""
    max_new_tokens: PositiveInt | None = None
    """Of an answer; by default half as many again as the longest wanted one has, at most 256, and 64 where none is
    wanted."""
    prompts: tuple[Annotated[str, Field(min_length=1)], ...] | None = None
    """Answered before the first step and after the last; by default those of three held-out rows. [] is none."""

    @model_validator(mode="before")
    @classmethod
    def _no_rows(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError("this says how a run is measured; rows to measure with are named by data.evaluation")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.metrics and not self.answers:
            raise ValueError(
                f"{self.metrics[0]} is a metric of answers; say by evaluation.answers how many held-out rows to answer"
            )
        if self.answers and not self.metrics:
            raise ValueError("answers are for a metric; name one by evaluation.scores or evaluation.by, such as exact")
        return self

    @property
    def metrics(self) -> tuple[TextMetric, ...]:
        """Those of answers, each once."""
        of_by = () if self.by == "loss" else (self.by,)
        return tuple(dict.fromkeys((*of_by, *self.scores)))

    @property
    def chooses(self) -> bool:
        return self.keep == "best" or self.patience is not None

    @property
    def asked_of_rows(self) -> list[str]:
        """Settings that mean nothing without held-out rows."""
        return [name for name in OF_ROWS if getattr(self, name) != type(self).model_fields[name].default]

    def interval(self, steps: int, trained: int, read: int, written: int) -> int:
        """For a run of so many steps over so many tokens in all, of which one evaluation reads and writes so many."""
        if self.steps is not None:
            return self.steps
        affordable = int(READ_SHARE * trained / max(1, read + WRITTEN * written))
        between = TIMES - 1 if self.chooses else min(TIMES - 1, affordable)
        return -(-steps // (between + 1))
