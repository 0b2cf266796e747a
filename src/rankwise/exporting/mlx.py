"""mlx-lm's adapter format, from an adapter with one rank and the scale 1 for all layers.

    adapters.safetensors    path.lora_a = A^T (I, r)      path.lora_b = B^T (r, O)
    adapter_config.json     fine_tune_type lora, num_layers, lora_parameters {rank, scale 1, dropout 0, keys}

mlx-lm lays factors over the layers in `keys`, which are named inside a block or, outside the blocks, by their whole
path, and then reads the tensors. A layer in `keys` without tensors gets factors that change nothing. mlx-lm names the
layers of a block as transformers does, below `model.layers`; an adapter of a model with other names is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import regex
from safetensors.torch import save_file
from torch import Tensor

from rankwise.adapters.formats.dialects import read_adapter
from rankwise.adapters.formats.mlx import WEIGHTS
from rankwise.adapters.formats.peft_reader import CONFIG
from rankwise.adapters.weights import AdapterWeights, Factors, check_same
from rankwise.errors import AdapterError, some
from rankwise.system.files import published, write_json

IN_BLOCK = regex.compile(r"model\.layers\.(?P<block>\d+)\.(?P<key>.+)")
OUTSIDE = ("lm_head", "model.embed_tokens")
MATRIX = 2


def write_mlx(
    weights: AdapterWeights, folder: Path, beside: Mapping[str, Any], fill: Callable[[Path], None] | None = None
) -> None:
    """Write an adapter as `AdapterWeights.portable` makes it, whole or not at all, and read it back before the folder
    takes its name. AdapterError where mlx-lm could not express it."""
    _refuse(weights, folder)
    tensors: dict[str, Tensor] = {}
    for path, part in weights.factors.items():
        tensors |= {f"{path}.lora_a": part.A.T.contiguous(), f"{path}.lora_b": part.B.T.contiguous()}
    with published(folder) as temporary:
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "mlx"})
        for file, value in {CONFIG: settings_of(weights), **beside}.items():
            write_json(temporary / file, value)
        if fill is not None:
            fill(temporary)
        check_same(read_adapter(temporary), weights, folder)


def settings_of(weights: AdapterWeights) -> dict[str, Any]:
    blocks = [match for path in weights.factors if (match := IN_BLOCK.fullmatch(path))]
    keys = {match["key"] for match in blocks} | {path for path in weights.factors if path in OUTSIDE}
    return {
        "fine_tune_type": "lora",
        "lora_parameters": {"rank": weights.rank, "scale": 1.0, "dropout": 0.0, "keys": sorted(keys)},
        "model": weights.settings.get("base_model_name_or_path"),
        "num_layers": 1_000,  # the last so many blocks, and no model has more
    }


def _refuse(weights: AdapterWeights, folder: Path) -> None:
    problems = [
        f'"{path}" has a name that mlx-lm may not know; known are {", ".join(OUTSIDE)} and layers of model.layers'
        for path in weights.factors
        if path not in OUTSIDE and not IN_BLOCK.fullmatch(path)
    ]
    problems += [
        f'"{path}" {"holds all experts of a block" if part.experts else "is a convolution"}'
        for path, part in weights.factors.items()
        if not _is_matrix(part)
    ]
    problems += [f'"{name}" was trained whole, which this format does not hold' for name in weights.heads]
    if not weights.factors:
        problems.append("no layer has an adapter")
    if problems:
        raise AdapterError(f"{folder} cannot be written for mlx-lm: {some(problems, 4)}. Use the format merged.")


def _is_matrix(part: Factors) -> bool:
    return part.A.ndim == MATRIX
