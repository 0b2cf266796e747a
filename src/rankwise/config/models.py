"""Where a base model comes from, and in which number format and on which device it is held."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import Field, model_validator

from rankwise.config.base import Config


class ModelConfig(Config):
    """`name` is a starter name, a hub id (`organisation/model`), a local folder or a GGUF file."""

    name: str = Field(min_length=1)
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 where the processor computes in it, float32 elsewhere. What learns is float32 always: adapters,
    and with the method full the whole model, which may not be asked for in bfloat16."""
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    trust_code: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")
    """The one commit whose Python code may run, read and named by the user. Never a branch."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": os.fspath(value)} if isinstance(value, str | os.PathLike) else value
