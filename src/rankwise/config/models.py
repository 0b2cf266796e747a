"""Settings of the base model: where it comes from, its number format and its device."""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from rankwise.config.base import Flag, Label
from rankwise.config.incompatible import Compatible

PackedFormat = Literal["nf4", "int8"]
"""What a base in full can be stored as."""
Dtype = Literal["auto", "float32", "bfloat16"]
UNITS = {
    f"{letter}{binary}b": (1024 if binary else 1000) ** power
    for power, letter in enumerate(("", "k", "m", "g", "t"))
    for binary in ("", "i")
    if letter or not binary
}
LARGEST = 10**15
IMAGES, ENCODER, BOTH, DECODER = "images", "encoder", "encoder-decoder", "decoder"
"""What a model is by nature: it reads images; it reads texts and generates none; an encoder reads a text and a decoder
writes another; or it is any other."""


def parse_size(text: str) -> int:
    """Bytes. ValueError for anything else than a number and a unit."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?b)", text.strip().lower())
    size = 0 if found is None or found[2] not in UNITS else round(float(found[1]) * UNITS[found[2]])
    if not 0 < size <= LARGEST:
        raise ValueError("an amount of memory is a number with a unit, such as 6GB or 800MB")
    return size


class ModelConfig(Compatible):
    """The base model. A plain string is its name: `model: smollm2-135m`."""

    sections = ("model",)
    name: Annotated[str, Flag("--model"), Label("Model", "model")] = Field(min_length=1)
    """Base model: a starter name, a Hugging Face id (`organisation/model`), a local folder or a GGUF file."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face model."""
    dtype: Dtype = "auto"
    """Dtype of the frozen weights. `auto` is bfloat16 if the hardware computes faster in it, and float32 otherwise.
    Trained weights are always float32, so full fine-tuning rejects bfloat16."""
    quantize: Annotated[
        Literal["auto", "none", "nf4", "int8"], Flag("--quantize", "as the model has them"),
        Label("Weights in fewer bits", "memory"),
    ] = "auto"  # fmt: skip
    """Quantise the frozen weights of linear layers (`nf4` for QLoRA, `int8`), or keep them in full (`none`). `nf4`
    takes a quarter of bfloat16's memory, `int8` half. Matrix multiplications are computed in `dtype`. `auto` keeps a
    quantised model quantised and all others in full; `none` always computes with full weights."""
    memory: Annotated[str | None, Flag("--memory"), Label("Memory limit", "memory")] = None
    """Maximum resident memory for training on a CPU, such as `6GB`. Frozen weights then stay in their file, and their
    memory is released after each use. If necessary, more blocks use activation checkpointing and fewer tokens are
    computed at once. This takes longer and changes results at most by rounding."""
    sharded: Annotated[bool, Flag("--shard")] = False
    """Shard the base model over the processes (`--processes`) with PyTorch's FSDP2: each keeps its share of the
    weights in memory and gathers a block's weights while computing it. The result is the same apart from rounding."""
    new_tokens: Annotated[tuple[str, ...], Flag("--new-tokens")] = ()
    """New tokens to add to the vocabulary, separated by commas, such as `<city>,<date>`, or as a list. Each starts as
    the mean of the tokens that spelled it before. Their rows in the embedding and in the output head are trained and
    stored with the adapter; all other rows stay unchanged. A text that is already one token is not added, and the run
    says so."""
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:[0-9]+)?)\Z")
    """Device to run on: `auto`, `cpu`, `mps`, `cuda`, or `cuda:N` for one of several GPUs."""
    trust_code: str | None = Field(None, pattern=r"^[0-9a-f]{40}\Z")
    """Run the model's own Python code, from this commit (40 hex digits). Read the code of this commit first. By
    default no such code runs. Branches are rejected, since their content can change."""

    @field_validator("memory")
    @classmethod
    def _is_a_size(cls, value: str | None) -> str | None:
        if value is not None:
            parse_size(value)
        return value

    @field_validator("new_tokens", mode="before")
    @classmethod
    def _several_in_one(cls, value: Any) -> Any:
        return tuple(filter(None, (one.strip() for one in value.split(",")))) if isinstance(value, str) else value

    @field_validator("new_tokens")
    @classmethod
    def _are_tokens(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not one.strip() for one in value):
            raise ValueError("a token is a text with at least one visible character")
        twice = [one for one, times in Counter(value).items() if times > 1]
        if twice:
            raise ValueError(f'the token "{twice[0]}" is named twice')
        return value

    @property
    def packed_format(self) -> PackedFormat | None:
        """What the settings ask weights in full to be stored as; None where they stay as they are."""
        return None if self.quantize in ("auto", "none") else self.quantize

    @property
    def memory_bytes(self) -> int | None:
        return None if self.memory is None else parse_size(self.memory)

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": os.fspath(value)} if isinstance(value, str | os.PathLike) else value
