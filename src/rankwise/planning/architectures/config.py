"""The settings of a config.json that decide what a model is made of, checked before anything is computed from them.

A family is a `Config`: its fields are the settings it reads, with the defaults of transformers' config class, and
`layers` and `stacks` are what it builds of them. Fields without a default must be there, also where transformers would
fill them in: a size that nobody wrote down is a guess. Settings that would change the shape and are not handled are
refused by name; all others are passed over, as transformers does.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rankwise.config.base import shown
from rankwise.planning.shape import Blocks, Layer

Width = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
Heads = Annotated[int, Field(ge=1, le=10_000, strict=True)]
Count = Annotated[int, Field(ge=1, le=2_000, strict=True)]
"""Of blocks: the deepest transformers have a thousand."""
Table = Annotated[int, Field(ge=1, le=100_000_000, strict=True)]
"""Rows of an embedding: the vocabulary, or positions."""
Flag = Annotated[bool, Field(strict=True)]

FOREIGN = {
    "quantization_config": "quantised weights", "num_experts": "experts", "num_local_experts": "experts",
    "n_routed_experts": "experts", "moe_intermediate_size": "experts", "text_config": "a model inside the model",
    "vision_config": "a model inside the model", "per_layer_config": "blocks that differ",
    "add_cross_attention": "cross-attention",
}  # fmt: skip
"""Settings of the whole library that change what is built, and what they stand for."""


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, populate_by_name=True)

    made_by: ClassVar[str] = "AutoModelForCausalLM"
    aliases: ClassVar[dict[str, str]] = {}
    """Other names that transformers takes for a setting, to its own name."""
    head: ClassVar[str | None] = "lm_head"

    @model_validator(mode="before")
    @classmethod
    def _one_name_each(cls, value: Any) -> Any:
        given = dict(value)
        for other, own in cls.aliases.items():
            if other in given and given.setdefault(own, given[other]) != given[other]:
                raise ValueError(
                    f'"{own}" is {shown(given[own])} and "{other}", the same setting, {shown(given[other])}'
                )
        return given

    @model_validator(mode="after")
    def _whole(self) -> Config:
        problems = list(self.contradictions())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def contradictions(self) -> Iterator[str]:
        """What is wrong between the settings."""
        return iter(())

    @abstractmethod
    def layers(self) -> Iterator[Layer]:
        """In the order of the modules."""

    @property
    @abstractmethod
    def stacks(self) -> tuple[Blocks, ...]: ...

    @property
    def vocabulary(self) -> int:
        return getattr(self, "vocab_size", 0)

    @property
    def context(self) -> int | None:
        return getattr(self, "max_position_embeddings", None)


def foreign_to(config: dict[str, Any]) -> list[str]:
    """Settings that change what is built in ways that are not known here."""
    return [f'"{key}" ({what})' for key, what in FOREIGN.items() if config.get(key) not in (None, False, 0, {}, [])]


def uneven(inside: int, whole: int, name_of_whole: str, name_of_inside: str) -> Iterator[str]:
    if whole % inside:
        yield f'"{name_of_whole}" is {whole}, which "{name_of_inside}" ({inside}) does not divide'
