"""Which rows are trained on, and how they are read."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rankwise.spec.spec import PositiveInt, Spec


class DataSpec(Spec):
    """A file of JSON lines: messages, prompt and completion (or response), or instruction, input and output."""

    path: str = Field(min_length=1)
    format: Literal["auto", "messages", "prompt", "instruction"] = "auto"
    system: str | None = None
    """A system message for rows that bring none."""
    max_length: PositiveInt = 1024
    """Tokens. A longer row is left out and counted, never cut: a cut row would lose its end token."""
    held_out: Annotated[int, Field(ge=0, strict=True)] = 0
    """The last N rows are not trained on; the loss on them is measured before and after."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": os.fspath(value)} if isinstance(value, str | os.PathLike) else value
