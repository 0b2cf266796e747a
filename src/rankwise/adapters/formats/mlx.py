"""mlx-lm's adapter: adapters.safetensors, and an adapter_config.json of its own.

    y  =  x W^T + scale * (x lora_a) lora_b          lora_a (I, r), lora_b (r, O):  A = lora_a^T,  B = lora_b^T
    embedding   lora_a (V, r), lora_b (r, D)         the same two transposes

The scale is absolute: it is not divided by the rank. DoRA has the magnitude m (O,) beside the factors. All layers have
one rank and one scale, from lora_parameters. Names are those of mlx-lm's model, which are transformers' own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import regex
from pydantic import BaseModel, ConfigDict, Field

from rankwise.adapters.formats.imported import ImportedSource, Layers, Modules
from rankwise.adapters.formats.tensors import read_tensors, validated
from rankwise.adapters.weights import AdapterWeights, Factors
from rankwise.config.base import Number
from rankwise.errors import AdapterError, ModelError
from rankwise.system.foreign_json import read_json

WEIGHTS = "adapters.safetensors"
KEY = regex.compile(r"(?P<path>.+)\.(?P<part>lora_a|lora_b|m)")
STACKED = 3
"""Dimensions of the factors of several experts in one tensor."""


class MlxParameters(BaseModel):
    """`lora_parameters`; `keys` only chose the layers that were trained."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rank: Annotated[int, Field(strict=True, ge=1, le=1 << 16)]
    scale: Annotated[Number, Field(gt=0, le=1e8)]
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    keys: Any = None


class MlxConfig(BaseModel):
    """What says how to read the factors. mlx-lm writes all settings of its training beside it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    fine_tune_type: Literal["lora", "dora"] = "lora"
    lora_parameters: MlxParameters
    model: str | None = None


def read(source: ImportedSource, modules: Modules | None) -> AdapterWeights:
    assert source.settings is not None, "an adapter of mlx-lm is known by its settings"
    config = config_of(source.settings)
    parameters = config.lora_parameters
    layers = Layers(source, dropout=parameters.dropout, base=config.model)
    parts = ("lora_a", "lora_b", *(["m"] if config.fine_tune_type == "dora" else []))
    for path, (a, b, *magnitude) in layers.grouped(read_tensors(source.tensors), KEY, parts).items():
        if a.ndim == STACKED:
            layers.problems.append(
                f'"{path}" has the factors of a mixture of {a.shape[0]} experts, which are not supported'
            )
        elif layers.fit(path, a.T, b.T, parameters.rank):
            A, B = a.T.contiguous(), b.T.contiguous()
            layers.factors[path] = Factors(A, B, float(parameters.scale), next(iter(magnitude), None))
    return layers.over(modules)


def base_of(source: ImportedSource) -> str | None:
    return None if source.settings is None else config_of(source.settings).model


def config_of(file: Path) -> MlxConfig:
    """The settings; AdapterError where they describe no LoRA."""
    try:
        settings = read_json(file)
    except ModelError as error:
        raise AdapterError(str(error)) from None
    parameters = settings.get("lora_parameters")
    if settings.get("fine_tune_type") == "full":
        raise AdapterError(
            f"{file} says fine_tune_type: full, so {WEIGHTS} has whole weights and no adapter. "
            "Fuse them into the model with mlx_lm.fuse."
        )
    if isinstance(parameters, dict) and "alpha" in parameters:
        raise AdapterError(
            f"{file} sets lora_parameters.alpha. Old versions of mlx-lm multiplied the scale by alpha / rank "
            "and new ones ignore alpha, so the scale is not known. "
            "Remove alpha, and set scale to the factor of lora_a lora_b."
        )
    return validated(MlxConfig, settings, f"{file}, settings of mlx-lm")
