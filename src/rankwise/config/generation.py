"""How an answer is drawn from a model."""

from __future__ import annotations

from pydantic import Field

from rankwise.config.base import Config, Number, PositiveInt, Seed


class GenerationConfig(Config):
    max_new_tokens: PositiveInt = 256
    temperature: Number = Field(0.0, ge=0, le=10)
    """0: always the likeliest token."""
    top_p: Number = Field(1.0, gt=0, le=1)
    """With a temperature: draw from the likeliest tokens that together hold this probability."""
    seed: Seed = 0
    repetition_check: bool = True
    """Stop an answer that writes the same tokens again and again (inference/repetition.py)."""
