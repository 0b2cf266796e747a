"""The blocks of vision transformers by kernels, inside the model's own forward pass.

    x = x + s1 o(attention(q, k, v of norm(x))),   x = x + s2 fc2(f(fc1(norm(x))))        s1 = s2 = 1 but in DINOv2

Only the blocks are replaced: embeddings, pooling and head are the model's own code. A block's parts are its own
modules, with or without adapters. Blocks are recognised by their class; all others use the eager backend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.forward.checkpointing import blocks_in_order
from rankwise.forward.decoders.parts import fed_forward, layer_norm, linears
from rankwise.kernels.full_attention import full_attention
from rankwise.kernels.prologue import Identity


@dataclass(frozen=True)
class BlockNames:
    """Names of a block's parts."""

    attention: str
    output: str
    """The projection behind attention, inside it."""
    norms: tuple[str, str]
    scale: str
    """The factor of attention's scores, inside it."""
    layer_scales: tuple[str, str] | None = None


CLIP = BlockNames("self_attn", "out_proj", ("layer_norm1", "layer_norm2"), "scale")
VIT = BlockNames("attention", "o_proj", ("layernorm_before", "layernorm_after"), "scaling")
DINOV2 = BlockNames("attention", "o_proj", ("norm1", "norm2"), "scaling", ("layer_scale1", "layer_scale2"))
BLOCKS = {
    "ViTLayer": VIT, "DeiTLayer": VIT, "Dinov2Layer": DINOV2, "CLIPEncoderLayer": CLIP, "SiglipEncoderLayer": CLIP,
}  # fmt: skip


def encoder_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks in the order of the forward pass; empty where not all of them are known and can be replaced."""
    blocks = blocks_in_order(module)
    return blocks if blocks and all(_is_known(block) for block in blocks) else []


def _is_known(block: Any) -> bool:
    """Require the class to be transformers' own, since code that comes with a model may use the same name."""
    names = BLOCKS.get(type(block).__name__)
    if names is None or not type(block).__module__.startswith("transformers.models."):
        return False
    mlp, drops = block.mlp, [part for part in block.modules() if isinstance(part, nn.Dropout)]
    return (
        hasattr(mlp, "fc1")
        and hasattr(mlp, "fc2")
        and not any(part.p for part in drops)
        and not getattr(getattr(block, "drop_path", None), "drop_prob", 0.0)
    )


@contextmanager
def fused_blocks(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Compute these blocks by kernels inside."""
    for block in blocks:
        assert "forward" not in vars(block), "another patch has replaced its forward"
        block.forward = partial(_block, block, BLOCKS[type(block).__name__])
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _block(block: Any, names: BlockNames, hidden_states: Tensor, *given: Any, **named: Any) -> Tensor:
    """(B, T, d) to (B, T, d)."""
    rows, tokens, width = hidden_states.shape
    x = hidden_states.reshape(rows * tokens, width)
    attention, mlp = getattr(block, names.attention), block.mlp
    norm1, norm2 = (layer_norm(getattr(block, name)) for name in names.norms)
    q, k, v = linears([attention.q_proj, attention.k_proj, attention.v_proj], norm1, x)
    heads = q.shape[1] // attention.head_dim
    seen = full_attention(q, k, v, rows, heads, getattr(attention, names.scale))
    add1, add2 = _adders(block, names)
    x = add1(x, linears([getattr(attention, names.output)], Identity(), seen)[0])
    x = add2(x, fed_forward([mlp.fc1], mlp.activation_fn, mlp.fc2, norm2, x))
    return x.view(rows, tokens, width)


def _adders(block: Any, names: BlockNames) -> tuple[Callable[[Tensor, Tensor], Tensor], ...]:
    if names.layer_scales is None:
        return (torch.add, torch.add)
    scales = [getattr(block, name).lambda1 for name in names.layer_scales]
    return tuple(partial(_scaled_add, scale) for scale in scales)


def _scaled_add(scale: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.addcmul(x, y, scale)
