"""PEFT's VeRA: two vectors for each layer, and two random matrices that all layers share.

    delta W  =  diag(b) B[:O] diag(d) A[:, :I]        A (r, most inputs), B (most outputs, r)

    base_model.vera_A, base_model.vera_B                              where save_projection is set
    base_model.model.<path>.vera_lambda_d (r,), .vera_lambda_b (O,)

It is read as a LoRA of rank r, whose factors are diag(d) A and diag(b) B. How many inputs a layer has, only the base
model says. Matrices that are not in the file would depend on the machine that draws them, and are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import regex
import torch
from pydantic import BaseModel, ConfigDict

from rankwise.adapters.base_layers import features_of
from rankwise.adapters.formats.imported import ImportedSource, Layers, Modules, host_problem
from rankwise.adapters.formats.peft_config import read_settings
from rankwise.adapters.formats.peft_reader import CONFIG
from rankwise.adapters.formats.tensors import read_tensors, validated
from rankwise.adapters.weights import AdapterWeights, Factors
from rankwise.config.adapters import Rank

SHARED = ("base_model.vera_A", "base_model.vera_B")
_KEY = regex.compile(r"base_model\.model\.(?P<path>.+)\.(?P<part>vera_lambda_[bd])")


class PeftVeraConfig(BaseModel):
    """What says how to read the vectors."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    peft_type: Literal["VERA"]
    r: Rank
    save_projection: Literal[True] = True
    bias: Literal["none"] = "none"
    modules_to_save: None = None
    base_model_name_or_path: str | None = None


@dataclass(frozen=True)
class VeraWeights(AdapterWeights):
    @property
    def parameters(self) -> int:
        """How many numbers the vectors have, which are all that was trained."""
        return sum(part.rank + len(part.B) for part in self.factors.values())


def read(source: ImportedSource, modules: Modules | None) -> AdapterWeights:
    (config, settings), tensors = _config_of(source), read_tensors(source.tensors)
    layers, rank = Layers(source), config.r
    layers.problems += [f'"{name}" is missing' for name in SHARED if name not in tensors]
    A, B = (tensors.pop(name, torch.empty(0)) for name in SHARED)
    vectors = layers.grouped(tensors, _KEY, ("vera_lambda_d", "vera_lambda_b"))
    for path, (d, b) in vectors.items() if layers.fit("base_model.vera_A and vera_B", A, B, rank) else ():
        if d.shape != B.shape[1:] or b.ndim != 1 or len(b) > len(B):
            layers.problems.append(
                f'"{path}" has vera_lambda_b of shape {tuple(b.shape)} and vera_lambda_d of shape {tuple(d.shape)}, '
                f"but needs vera_lambda_d {tuple(B.shape[1:])} and vera_lambda_b up to {len(B)}"
            )
            continue
        host = None if modules is None else modules.get(path)
        inside = A.shape[1] if host is None or host_problem(host) is not None else features_of(host)[0]
        factors = d[:, None].float() * A[:, :inside].float(), b[:, None].float() * B[: len(b)].float()
        layers.factors[path] = Factors(*factors, 1.0)
    placed = layers.over(modules)
    return VeraWeights(settings, placed.factors, renamed=placed.renamed, remarks=placed.remarks)


def base_of(source: ImportedSource) -> str | None:
    return _config_of(source)[0].base_model_name_or_path


def _config_of(source: ImportedSource) -> tuple[PeftVeraConfig, dict[str, Any]]:
    settings = read_settings(source.folder / CONFIG)
    return validated(PeftVeraConfig, settings, str(source.folder / CONFIG)), settings
