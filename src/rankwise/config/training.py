"""How long, how fast and in what portions a run is trained."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rankwise.config.base import Config, Number, PositiveInt, Seed

AT_WIDTH_576 = {"lora": 2e-3, "adalora": 2e-3, "full": 1e-4}
"""What `auto` is there, by the method; training/schedules.py says why."""


class TrainingConfig(Config):
    epochs: Annotated[Number, Field(gt=0, le=1000)] | None = None
    """Passes over the training rows; 2 when neither epochs nor steps is given."""
    steps: PositiveInt | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: PositiveInt = 16
    """Rows per optimizer step."""
    max_batch_tokens: PositiveInt = 2048
    """Padded tokens computed at once. Bounds the memory, changes no result (without dropout): the loss of a step is the
    mean over the supervised tokens of all its rows, however they are portioned."""
    auto_batch: bool = False
    """Where memory runs out, begin the step again with half of max_batch_tokens; its rows stay the same."""
    learning_rate: Annotated[Number, Field(gt=0, le=10)] | Literal["auto"] = "auto"
    """`auto`: 2e-3 at width 576, falling with the width of the model; a twentieth of it where the whole model learns
    (see training/schedules.py)."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls to zero after the warm-up, if it does."""
    warmup: Number = Field(0.03, ge=0, lt=1)
    """Share of the steps in which the rate rises from zero."""
    weight_decay: Number = Field(0.0, ge=0, lt=1)
    plain: bool = False
    """Without the fast forms of what is computed (kernels/), which some models have. Results differ in rounding."""
    activation_checkpointing: Literal["auto"] | Annotated[int, Field(ge=0, le=10_000, strict=True)] = "auto"
    """How many of the lowest blocks that learn keep only what goes into them and are computed again in the backward
    pass: memory for time, and the same numbers. `auto`: as many as free memory makes necessary."""
    clip: Number = Field(1.0, gt=0)
    """Largest norm of the whole gradient."""
    seed: Seed = 0
    checkpoint_steps: PositiveInt | None = None
    """Steps from one checkpoint to the next, of which the last is kept until the run is finished. By default a tenth of
    the run, at most 500; none where a run has 100 steps or fewer, as that is soon begun again."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps both say how long to train; give one of them")
        return self

    def checkpoint_interval(self, steps: int) -> int:
        """`steps` or more where a run of so many writes none: after its last step there is the result."""
        return self.checkpoint_steps or (min(500, steps // 10) if steps > 100 else steps)

    def rows_per_step(self, rows: int) -> int:
        """No row is taken twice in one step."""
        return min(self.batch_size, rows)

    def highest_rate(self, width: int, method: str) -> float:
        """The learning rate after the warm-up, of a model of this width."""
        return AT_WIDTH_576[method] * (576 / width) ** 0.8 if self.learning_rate == "auto" else self.learning_rate

    def total_steps(self, rows: int) -> int:
        """Enough that every row is seen `epochs` times; the last step is filled up from the next pass."""
        if self.steps is not None:
            return self.steps
        return math.ceil((self.epochs or 2.0) * rows / self.rows_per_step(rows))
