"""The architectures that can be written as GGUF, and how each tensor of transformers lies there.

    name       by the gguf package's own table, such as blk.0.attn_q.weight for model.layers.0.self_attn.q_proj.weight
    rows       of queries and keys in the llama family: the two halves of each head are taken in turns,
               row 2 i + j of a head is transformers' row j D/2 + i   (D rows of the head, j 0 or 1)
    norms      of Gemma: 1 is added to the weight, since Gemma multiplies by 1 + weight
    Conv1D     of GPT-2: (I, O) there, (O, I) in GGUF

Each rule is also one of llama.cpp's converter. tests/exporting compare what is written with transformers' own reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rankwise.base.gguf.header import tensor_names
from rankwise.config.base import shown
from rankwise.errors import ModelError

EMBEDDING, HEAD = "token_embd.weight", "output.weight"


@dataclass(frozen=True)
class Architecture:
    name: str
    """GGUF's."""
    turned_heads: bool = False
    """Whether the rows of queries and keys are taken in turns."""
    norms_add_one: bool = False
    conv1d: tuple[str, ...] = ()
    """Last names of layers whose weights transformers stores as (I, O)."""
    own_head: bool = True
    """Whether llama.cpp reads an output head that differs from the embedding."""


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", turned_heads=True),
    "mistral": Architecture("llama", turned_heads=True),
    "smollm3": Architecture("smollm3", turned_heads=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma2": Architecture("gemma2", norms_add_one=True, own_head=False),
    "gemma3_text": Architecture("gemma3", norms_add_one=True),
    "phi3": Architecture("phi3"),
    "gpt2": Architecture("gpt2", conv1d=("c_attn", "c_proj", "c_fc")),
}
"""By transformers' model_type."""


def architecture_of(config: Mapping[str, Any], described: str) -> Architecture:
    """ModelError for an architecture that is not in the list; `described` names the model in the message."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise ModelError(
            f"{described} is a model of the architecture {shown(kind)}, which cannot be written as GGUF. Supported: "
            f"{', '.join(ARCHITECTURES)}. Use --format merged, and convert the folder with llama.cpp's "
            "convert_hf_to_gguf.py if it knows this architecture."
        )
    return ARCHITECTURES[kind]


class GgufNames:
    """Where the parameters of one model lie in GGUF, and in which order their numbers are."""

    def __init__(self, architecture: Architecture, config: Mapping[str, Any]) -> None:
        self.architecture = architecture
        self._heads = int(config.get("num_attention_heads") or config.get("n_head") or 0)
        self._shared = int(config.get("num_key_value_heads") or self._heads)
        self._blocks = int(config.get("num_hidden_layers") or config.get("n_layer") or 0)

    @cached_property
    def _table(self) -> Any:
        return tensor_names(self.architecture.name, self._blocks)

    def of(self, parameter: str) -> str | None:
        """The name of a parameter such as `model.layers.0.mlp.up_proj.weight`; None for one that GGUF has no place
        for."""
        path, _, kind = parameter.rpartition(".")
        stem = self._table.get_name(path)
        return None if stem is None else f"{stem}.{kind}"

    def with_rows(self, path: str, value: Tensor) -> Tensor:
        """Put the outputs of the layer `path`, the first dimension of `value`, into the order of GGUF."""
        heads = self._turned(path)
        return value.reshape(heads, 2, -1, *value.shape[1:]).transpose(1, 2).reshape(value.shape) if heads else value

    def without_rows(self, path: str, value: Tensor) -> Tensor:
        """Put the outputs of the layer `path` back from the order of GGUF."""
        heads = self._turned(path)
        return value.reshape(heads, -1, 2, *value.shape[1:]).transpose(1, 2).reshape(value.shape) if heads else value

    def _turned(self, path: str) -> int:
        """The heads of a layer whose rows are taken in turns, and 0 of another layer."""
        heads = {"q_proj": self._heads, "k_proj": self._shared}.get(path.rpartition(".")[2], 0)
        return heads if self.architecture.turned_heads else 0

    def stored(self, parameter: str, value: Tensor) -> Tensor:
        """A parameter's numbers as they lie in GGUF, in float32."""
        path, _, kind = parameter.rpartition(".")
        value = value.to(torch.float32)
        if kind == "weight" and path.rpartition(".")[2] in self.architecture.conv1d:
            value = value.T
        if self.architecture.norms_add_one and parameter.endswith("norm.weight"):
            value = value + 1
        return self.with_rows(path, value).contiguous()

    def from_stored(self, parameter: str, value: Tensor) -> Tensor:
        """The numbers of a parameter in float32 from those in GGUF, whose rows are in order already."""
        path, _, kind = parameter.rpartition(".")
        if self.architecture.norms_add_one and parameter.endswith("norm.weight"):
            value = value - 1
        return value.T if kind == "weight" and path.rpartition(".")[2] in self.architecture.conv1d else value
