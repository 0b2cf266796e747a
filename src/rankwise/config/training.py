"""Settings of the training loop: length, batches, learning rate, memory and checkpoints."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field

from rankwise.config.base import Flag, Label, Number, PositiveInt, Seed
from rankwise.config.forgetting import AnchorConfig, ReplayConfig
from rankwise.config.incompatible import Compatible
from rankwise.errors import ConfigError

MOST_PASSES = 1_000_000
"""Over the rows, in a training whose length is a number of steps."""


class TrainingConfig(Compatible):
    """Training settings: length, batches, learning rate, memory and checkpoints."""

    sections = ("training",)
    epochs: Annotated[
        Annotated[Number, Field(gt=0, le=1000)] | None,
        Flag("--epochs", "2; for few rows and for text classifiers, until validation stops improving"),
        Label("Epochs", "knobs"),
    ] = None
    """Number of epochs, passes over the training rows. The default is 2 if steps is not given either, and 4 for a text
    classifier. With validation rows it is at most 10 for a text classifier. For a language model it is then as many as
    make 100 steps, at most 6, if that is more than 2 (530 rows or fewer, by default). Training then ends when
    validation stops improving (validation.keep is `best` and validation.patience 2)."""
    steps: Annotated[PositiveInt | None, Flag("--steps"), Label("Or steps", "knobs")] = None
    """Number of optimizer steps, instead of epochs."""
    batch_size: Annotated[PositiveInt, Flag("--batch-size"), Label("Rows in a step", "knobs")] = 16
    """Number of rows in each optimizer step."""
    max_batch_tokens: Annotated[PositiveInt, Label("Tokens at once", "memory")] = 2048
    """Maximum number of tokens in one forward pass, padding included. A step with more tokens is split into
    micro-batches. This limits memory and does not change the result (without dropout), because the loss of a step is
    the mean over all its loss tokens."""
    auto_batch: Annotated[bool, Flag("--auto-batch"), Label("Smaller batches when memory runs out", "memory")] = False
    """If memory runs out, compute fewer tokens at once (half of max_batch_tokens) and repeat the step with the same
    rows."""
    learning_rate: Annotated[
        Annotated[Number, Field(gt=0, le=10)] | Literal["auto", "tune"],
        Flag("--learning-rate", "by the method and the model's hidden size"),
        Label("Learning rate", "knobs"),
    ] = "auto"
    """Peak learning rate. `auto` is 2e-3 for adapters and 1e-4 for full fine-tuning at hidden size 576, and lower for
    wider models (training/trainer.py). `tune` chooses it with short trials on your rows before the run begins
    (`--tune`)."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate after the warmup: `linear` and `cosine` decay to zero, `constant` does not decay."""
    warmup: Number = Field(0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from zero."""
    warmup_steps: Annotated[
        Annotated[int, Field(ge=0, strict=True)] | None,
        Flag("--warmup-steps", "3 % of all steps"),
        Label("Warmup steps", "more"),
    ] = None
    """Number of warmup steps, in which the learning rate rises from zero. They replace the share `warmup`, and must be
    fewer than all steps."""
    weight_decay: Number = Field(0.0, ge=0, lt=1)
    """Weight decay of AdamW."""
    backend: Annotated[Literal["auto", "eager", "fused", "compiled"], Flag("--backend")] = "auto"
    """Backend that computes the loss: `eager` is the model's own code, `fused` uses faster kernels (for some models),
    and `compiled` adds torch.compile. `auto` takes the fastest that agrees with the model's own code. Results of
    different backends differ in rounding."""
    matmul: Annotated[Literal["auto", "bfloat16", "int8"], Flag("--matmul")] = "auto"
    """Matrix multiplication with frozen weights in int8, NF4 or GGUF: `bfloat16` or `int8`. `bfloat16` dequantises the
    weights for each multiplication. `int8` quantises the inputs to eight bits instead, which is twice as fast on
    processors with AVX512-VNNI or AMX; NF4 and GGUF files need a second copy of the weights for it. `auto` takes
    `int8` if the processor supports it and the copy takes at most a quarter of the free memory."""
    activation_checkpointing: Literal["auto"] | Annotated[int, Field(ge=0, le=10_000, strict=True)] = "auto"
    """Number of blocks whose activations are not stored but computed again in the backward pass, which saves memory,
    costs time and gives the same numbers. The lowest trained blocks come first. `auto` takes as many as free memory
    requires."""
    clip: Number = Field(1.0, gt=0)
    """Gradient clipping (max_grad_norm): the largest norm of the gradient over all parameters."""
    anchor: AnchorConfig | None = None
    """Regularisation toward the base model on other text. Off by default."""
    replay: ReplayConfig | None = None
    """Other rows mixed into the training rows, such as the base model's own answers. Off by default."""
    on_divergence: Literal["stop", "back-off"] = "stop"
    """What to do if the loss stays far above its past or is not a number: `stop` ends the run, which can be resumed
    with the other value. `back-off` goes back to an earlier checkpoint, or to the beginning, halves the learning rate
    and continues, at most three times."""
    seed: Annotated[Seed, Flag("--seed"), Label("Seed", "more")] = 0
    """Random seed for initial values, row order and dropout."""
    checkpoint_minutes: Annotated[Number, Field(gt=0, le=1440)] | None = None
    """Maximum time between checkpoints, in minutes, and so the work that a crash may cost. The default is 5. They are
    written more often, down to a fifth of this time, as long as they take less than 1 % of the run, and less often if
    they would take more than 5 %. Checkpoints are removed when the run is finished."""
    checkpoint_steps: PositiveInt | None = None
    """Steps between checkpoints, instead of a time; the run's number of steps means none. A run that is told to stop
    writes one in any case."""
    keep_checkpoints: Annotated[PositiveInt, Flag("--keep-checkpoints")] = 2
    """Number of checkpoints to keep. If the newest is damaged, a run resumes from the one before it. Each takes about
    three times the size of the trained weights in float32 on disk, and one more exists while it is written."""

    def checkpoint_interval(self, steps: int) -> int | None:
        """Steps between checkpoints in a run of `steps` steps; None where they go by time alone. A run that may go back
        has some at steps that no clock decides, so that its result is the same each time."""
        by_default = min(500, steps // 10) if steps > 100 else steps
        return self.checkpoint_steps or (by_default if self.on_divergence == "back-off" else None)

    @property
    def checkpoint_seconds(self) -> float | None:
        """Maximum time between two checkpoints, in seconds; None if checkpoints are written by steps."""
        return None if self.checkpoint_steps else 60 * (self.checkpoint_minutes or 5.0)

    def rows_per_step(self, rows: int) -> int:
        """Rows in one step. A row never occurs twice in the same step."""
        return min(self.batch_size, rows)

    def highest_rate(self, width: int, auto_rate: float) -> float:
        """The peak learning rate for a model with this hidden size; `auto_rate` is the method's default at hidden size
        576. It is also where the trials of `tune` start."""
        given = self.learning_rate
        return auto_rate * (576 / width) ** 0.8 if isinstance(given, str) else given

    def resolved(self, rows: int, width: int, auto_rate: float) -> Self:
        """These settings with numbers for the steps and the learning rate. ConfigError if the number of steps is so
        large that it must be a mistake, or if the warmup isn't shorter than the run."""
        passes = self.total_steps(rows) * self.rows_per_step(rows) // rows
        if passes > MOST_PASSES:
            raise ConfigError([
                f'setting "training.steps" is {self.steps:,}, in which each of the {rows:,} rows is seen {passes:,} '
                f"times (at most {MOST_PASSES:,})."
            ])  # fmt: skip
        steps, rate, warmup = self.total_steps(rows), self.highest_rate(width, auto_rate), self.warmup
        if self.warmup_steps is not None:
            if self.warmup_steps >= steps:
                raise ConfigError([
                    f'setting "training.warmup_steps" is {self.warmup_steps:,}, and the run has {steps:,} steps: the '
                    "learning rate would never reach its highest value. Give fewer (--warmup-steps)."
                ])  # fmt: skip
            warmup = self.warmup_steps / steps
        changes = {"steps": steps, "epochs": None, "learning_rate": rate, "warmup": warmup}
        return self.model_copy(update=changes)

    def total_steps(self, rows: int) -> int:
        """Number of optimizer steps. The last step is filled up with rows of another epoch."""
        if self.steps is not None:
            return self.steps
        return math.ceil((self.epochs or 2.0) * rows / self.rows_per_step(rows))
