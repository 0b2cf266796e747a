"""How an answer is drawn from a model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rankwise.spec.spec import PositiveInt, Spec


class GenerationSpec(Spec):
    max_new_tokens: PositiveInt = 256
    temperature: float = Field(0.0, ge=0, le=10)
    """0: always the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """With a temperature: draw from the likeliest tokens that together hold this probability."""
    seed: Annotated[int, Field(ge=0, strict=True)] = 0
