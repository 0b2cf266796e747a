"""Settings of text generation."""

from __future__ import annotations

from pydantic import Field

from rankwise.config.base import Config, Number, PositiveInt, Seed
from rankwise.config.data import Constrained


class GenerationConfig(Config):
    """Settings for generating an answer."""

    max_new_tokens: PositiveInt = 256
    """Largest number of tokens in an answer."""
    temperature: Number = Field(0.0, ge=0, le=10)
    """Sampling temperature. 0 always takes the most likely token."""
    top_p: Number = Field(1.0, gt=0, le=1)
    """With a temperature, sample only from the most likely tokens whose probabilities add up to this."""
    seed: Seed = 0
    """Seed of the sampling."""
    repetition_check: bool = True
    """Stop an answer that repeats the same tokens again and again (inference/decoding.py)."""
    constraint: Constrained = "own"
    """What the answer may be: `own` (the constraint of the run's rows), `none`, or another one."""
