"""Ollama, which reads the adapters of a few models itself, and a folder with a Modelfile (exporting/ollama.py)."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from rankwise.exporting.engines.engine import Engine, adalora, heads, magnitudes

if TYPE_CHECKING:
    from rankwise.adapters.weights import AdapterWeights

_LAYER = re.compile(r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)")


def _no_integer(weights: AdapterWeights) -> str | None:
    alpha = weights.settings.get("lora_alpha")
    return None if isinstance(alpha, int) else f"refuses lora_alpha {alpha}, since it reads an integer"


def _unnamed(weights: AdapterWeights) -> str | None:
    """The converter knows the linear layers of a Llama by name."""
    path = next((path for path in weights.factors if _LAYER.fullmatch(path) is None), None)
    return None if path is None else f'has no name for "{path}" in its converter, so it refuses the adapter'


ENGINE = Engine(
    "Ollama", "0.33.0-rc2 (fb30760)", "convert/convert.go, convert_llama_adapter.go", "tensor",
    (adalora, magnitudes, partial(heads, does="refuses"), _no_integer, _unnamed),
    uses={"ollama": "ollama create mine -f FOLDER/Modelfile, then ollama run mine"},
    aliases={"modelfile": "ollama"},
)  # fmt: skip
