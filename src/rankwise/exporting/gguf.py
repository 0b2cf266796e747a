"""An adapter as a GGUF LoRA file, which llama.cpp lays over a GGUF file of the base model:

    general.type = adapter, adapter.type = lora, adapter.lora.alpha = a
    NAME.lora_a (R, I)   NAME.lora_b (O, R)        of the weight NAME of the base; of an embedding (V, R) and (O, R)

llama.cpp adds (a / R) B A, with R the rank of this very tensor. Ranks and scales may differ between layers here, so
what a layer's own scale s asks for beyond a / R goes into its B: B' = B s R / a. In layers with s R = a, B stays as it
is. Numbers are float32. The file is read back, and each tensor is compared before it appears.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankwise.base.gguf.architectures import EMBEDDING, HEAD
from rankwise.base.gguf.files import TYPES, GgufTensor, check_written, write_gguf
from rankwise.base.gguf.folder import FileBase, is_tied
from rankwise.base.loading import load_tokenizer
from rankwise.errors import AdapterError, some
from rankwise.exporting.gguf_target import GgufChange, GgufModel, gguf_file, gguf_model
from rankwise.exporting.merge import Order
from rankwise.exporting.served_jinja import gguf_parity, template_of
from rankwise.exporting.template_parity import Parity

DTYPES = tuple(TYPES)


def template_parity_of(order: Order) -> Parity:
    """Compare the Jinja template that a GGUF file of this run has with training's, as llama.cpp renders it."""
    spec = order.artifact.model
    tokenizer, _, _ = load_tokenizer(spec, order.callback)
    parity = gguf_parity(template_of(order.artifact, tokenizer))
    parity.warn("llama.cpp", order.callback)
    return parity


def export_gguf_adapter(order: Order) -> int:
    """Write the adapter as a file; returns the largest rank."""
    model = gguf_model(order)
    change = _change(model, order.strength)
    if model.file is not None:
        _check_fits(change, FileBase(model.file), model.file)
    # The alpha of most layers, rounded as GGUF stores it
    alphas = Counter(_own_alpha(change, name) for name in change.factors)
    alpha = float(torch.tensor(alphas.most_common(1)[0][0], dtype=torch.float32))
    tensors = [tensor for name in sorted(change.factors) for tensor in _pair(name, change, alpha)]
    with gguf_file(order) as file:
        write_gguf(file, model.architecture.name, _fields(model, alpha), tensors, order.callback)
        check_written(file, tensors, order.folder, order.callback)
    return max(part.rank for part in change.factors.values())


def _change(model: GgufModel, strength: float) -> GgufChange:
    weights, described = model.adapter, model.artifact.described
    if weights is None:
        raise AdapterError(
            f"{described} has no adapter, because it is a result of full fine-tuning. Use --format gguf."
        )
    if weights.is_dora:
        raise AdapterError(f"{described} is DoRA, whose magnitudes llama.cpp does not read. Use --format gguf.")
    if weights.heads:
        raise AdapterError(
            f"{described} has fully trained modules (modules_to_save), which llama.cpp reads in no adapter: "
            f"{some(weights.heads, 4)}. Use --format gguf."
        )
    change = GgufChange.of(weights, model.names, described, strength)
    tied = bool(model.config.get("tie_word_embeddings"))
    if tied and (both := change.names & {EMBEDDING, HEAD}):
        raise AdapterError(
            f"{described} adapts {' and '.join(sorted(both))}, which is the embedding and the output head at once in "
            "this model, and llama.cpp cannot adapt one of the two. Use --format gguf."
        )
    if not change.factors:
        raise AdapterError(f"{described} changes no layer, so there is nothing to export.")
    return change


def _check_fits(change: GgufChange, base: FileBase, file: Path) -> None:
    """llama.cpp refuses an adapter of tensors that its base lacks, and does not say how to go on."""
    shapes, problems = base.shapes, []
    for name, part in change.factors.items():
        shape = (part.A.shape[1], part.B.shape[0]) if part.embedding else (part.B.shape[0], part.A.shape[1])
        if name not in shapes:
            problems.append(f"{name} is missing")
        elif shapes[name] != shape:
            problems.append(f"{name} has the shape {shapes[name]}, and the adapter needs {shape}")
    if is_tied(base) and EMBEDDING in change.factors:
        problems.append(f"{EMBEDDING} is the output head too")
    if problems:
        raise AdapterError(f"the adapter does not fit {file}: {some(problems, 4)}. Use --format gguf.")


def _own_alpha(change: GgufChange, name: str) -> float:
    part = change.factors[name]
    return round(part.scale * change.strength * part.rank, 9)


def _pair(name: str, change: GgufChange, alpha: float) -> list[GgufTensor]:
    part, own = change.factors[name], _own_alpha(change, name)
    A = part.A.T.contiguous() if part.embedding else part.A
    B = part.B if own == alpha else (part.B.double() * (own / alpha)).float()

    def tensor(suffix: str, value: Tensor) -> GgufTensor:
        return GgufTensor(f"{name}.{suffix}", tuple(value.shape), "F32", lambda: value)

    return [tensor("lora_a", A), tensor("lora_b", B)]


def _fields(model: GgufModel, alpha: float) -> dict[str, Any]:
    base = model.artifact.trained_on
    fields: dict[str, Any] = {
        "general.type": "adapter", "general.name": model.artifact.name, "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
    }  # fmt: skip
    if base is not None:
        fields |= {"general.base_model.count": 1, "general.base_model.0.name": base.name}
    return fields
