"""The blocks of encoders by kernels, inside the model's own forward pass.

Only the blocks are replaced: embeddings, pooling and head are the model's own code. Blocks are recognised by their
class; all others use the eager backend. Before a run relies on the kernels, both backends are compared on the model
itself (agreement.py).

One block of each family of encoders: how it combines kernels and its own modules, with or without adapters.

ViT      x = x + s1 o(attention(q, k, v of norm(x))),   x = x + s2 fc2(f(fc1(norm(x))))       s1 = s2 = 1 but in DINOv2
BERT     x = norm(x + o(attention(q, k, v of x))),      x = norm(x + fc2(f(fc1(x))))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rankwise.forward.activation_memory import blocks_in_order
from rankwise.forward.decoders import fed_forward, layer_norm, linears
from rankwise.forward.fused import StateCache, has_weights_that_learn, is_watched
from rankwise.kernels.attention import full_attention
from rankwise.kernels.linear import Identity, apply_prologue
from rankwise.rows.encoded.batches import Batch


class Family(Protocol):
    def suits(self, block: Any) -> bool:
        """Tell whether a block has the parts that its class usually has."""
        ...

    def block(self, block: Any, x: Tensor, rows: int, real: Tensor | None) -> Tensor:
        """Map (rows * T, d) to the same shape. `real` (rows, T) is false at padding."""
        ...


@dataclass(frozen=True)
class PreNorm:
    """The blocks of ViT and its like, which normalise before each part. Fields are the names of a block's modules."""

    attention: str
    output: str
    """The projection behind attention, inside it."""
    norms: tuple[str, str]
    scale: str
    """The factor of attention's scores, inside it."""
    layer_scales: tuple[str, str] | None = None

    def suits(self, block: Any) -> bool:
        return hasattr(block.mlp, "fc1") and hasattr(block.mlp, "fc2")

    def block(self, block: Any, x: Tensor, rows: int, real: Tensor | None) -> Tensor:
        attention, mlp = getattr(block, self.attention), block.mlp
        norm1, norm2 = (layer_norm(getattr(block, name)) for name in self.norms)
        q, k, v = linears([attention.q_proj, attention.k_proj, attention.v_proj], norm1, x)
        seen = full_attention(
            q, k, v, rows, q.shape[1] // attention.head_dim, getattr(attention, self.scale), real=real
        )
        add1, add2 = self._adders(block)
        x = add1(x, linears([getattr(attention, self.output)], Identity(), seen)[0])
        return add2(x, fed_forward([mlp.fc1], mlp.activation_fn, mlp.fc2, norm2, x))

    def _adders(self, block: Any) -> tuple[Callable[[Tensor, Tensor], Tensor], ...]:
        if self.layer_scales is None:
            return (torch.add, torch.add)
        return tuple(partial(_scaled_add, getattr(block, name).lambda1) for name in self.layer_scales)


def _scaled_add(scale: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.addcmul(x, y, scale)


@dataclass(frozen=True)
class PostNorm:
    """BERT and RoBERTa."""

    def suits(self, block: Any) -> bool:
        return not block.is_decoder and not block.add_cross_attention and not block.chunk_size_feed_forward

    def block(self, block: Any, x: Tensor, rows: int, real: Tensor | None) -> Tensor:
        attention, behind, after = block.attention.self, block.attention.output, block.output
        q, k, v = linears([attention.query, attention.key, attention.value], Identity(), x)
        seen = full_attention(q, k, v, rows, attention.num_attention_heads, attention.scaling, real=real)
        x = apply_prologue(layer_norm(behind.LayerNorm), x + linears([behind.dense], Identity(), seen)[0])
        inner = block.intermediate
        fed = fed_forward([inner.dense], inner.intermediate_act_fn, after.dense, Identity(), x)
        return apply_prologue(layer_norm(after.LayerNorm), x + fed)


_CLIP = PreNorm("self_attn", "out_proj", ("layer_norm1", "layer_norm2"), "scale")
_VIT = PreNorm("attention", "o_proj", ("layernorm_before", "layernorm_after"), "scaling")
_DINOV2 = PreNorm("attention", "o_proj", ("norm1", "norm2"), "scaling", ("layer_scale1", "layer_scale2"))
FAMILIES: dict[str, Family] = {
    "ViTLayer": _VIT, "DeiTLayer": _VIT, "Dinov2Layer": _DINOV2, "CLIPEncoderLayer": _CLIP, "SiglipEncoderLayer": _CLIP,
    "BertLayer": PostNorm(), "RobertaLayer": PostNorm(),
}  # fmt: skip
"""By the class of a block."""


def real_of(mask: Tensor | None) -> Tensor | None:
    """(B, T) from the mask (B, 1, T or 1, T) that a model gives its blocks: true, or 0 where it is added to scores, at
    what is no padding."""
    if mask is None:
        return None
    keys = mask[:, 0, -1]
    return keys if keys.dtype == torch.bool else keys == 0


def encoder_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks in the order of the forward pass; empty where not all of them are known and can be replaced."""
    blocks = blocks_in_order(module)
    return blocks if blocks and all(_is_known(block) for block in blocks) else []


def _is_known(block: nn.Module) -> bool:
    """Require the class to be transformers' own, since code that comes with a model may use the same name."""
    family = FAMILIES.get(type(block).__name__)
    if family is None or not type(block).__module__.startswith("transformers.models."):
        return False
    return family.suits(block) and not any(_drops(part) for part in block.modules())


def _drops(part: Any) -> bool:
    """Whether something is left out at random, as dropout and stochastic depth do in training."""
    share = getattr(part, "p", 0.0) if isinstance(part, nn.Dropout) else getattr(part, "drop_prob", None) or 0.0
    return bool(share) and part.training


def has_encoder_kernels(module: nn.Module) -> bool:
    """Tell whether there are kernels for all blocks of this model as it is now."""
    blocks = encoder_blocks(module)
    return (
        bool(blocks)
        and next(module.parameters()).device.type == "cpu"
        and not any(has_weights_that_learn(block) for block in blocks)
        and not any(is_watched(part) for block in blocks for part in block.modules())
    )


def lowest_block_that_learns(module: nn.Module) -> int:
    """The number of the lowest trainable block, and that behind the last one where only the head learns; 0 where
    something before the blocks is trainable."""
    blocks = encoder_blocks(module)
    of_blocks = {id(one) for block in blocks for one in block.parameters()}
    body = getattr(module, "base_model", module)
    body = getattr(module, "vision_model", module) if body is module else body
    if any(one.requires_grad and id(one) not in of_blocks for one in body.parameters()):
        return 0
    learning = [at for at, block in enumerate(blocks) if any(one.requires_grad for one in block.parameters())]
    return learning[0] if learning else len(blocks)


class FusedEncoder:
    """A model whose blocks are computed by kernels while its context `active` is open; `loss` is the objective's.

    From block `lowest` on, the first `recomputed` blocks use activation checkpointing. Blocks below `lowest` get no
    gradient and must not change: their outputs are cached for each image, up to `room` bytes.
    """

    def __init__(
        self, module: nn.Module, loss: Callable[[Batch], Tensor], *, lowest: int = 0, recomputed: int = 0, room: int = 0
    ) -> None:  # fmt: skip
        self._blocks, self._loss = encoder_blocks(module), loss
        self._lowest, self._recomputed = lowest, recomputed
        self._cache = StateCache(room) if lowest else None
        self._states: Tensor | None = None
        """The output of the block below `lowest` for the batch that is computed now."""
        self._reading = False
        """Whether this output is computed now, to be cached."""

    @contextmanager
    def active(self) -> Iterator[None]:
        for number, block in enumerate(self._blocks):
            assert "forward" not in vars(block), "another patch has replaced its forward"
            block.forward = partial(self._forward, number, block)
        try:
            yield
        finally:
            for block in self._blocks:
                del block.forward

    def __call__(self, batch: Batch) -> Tensor:
        if self._cache is None:
            return self._loss(batch)
        states = [self._cache.of(key, partial(self._below, one)) for key, one in _single_images(batch)]
        self._states = torch.cat(states)
        try:
            return self._loss(batch)
        finally:
            self._states = None

    def _forward(self, number: int, block: nn.Module, hidden_states: Tensor, *arguments: Any, **named: Any) -> Tensor:
        if self._states is not None and number < self._lowest:
            return self._states if number + 1 == self._lowest else hidden_states
        compute = partial(self._compute, block, arguments[0] if arguments else named.get("attention_mask"))
        again = torch.is_grad_enabled() and self._lowest <= number < self._lowest + self._recomputed
        states: Tensor = checkpoint(compute, hidden_states, use_reentrant=False) if again else compute(hidden_states)
        if self._reading and number + 1 == self._lowest:
            raise _Reached(states)
        return states

    @staticmethod
    def _compute(block: nn.Module, mask: Tensor | None, hidden_states: Tensor) -> Tensor:
        """(B, T, d) to (B, T, d)."""
        rows, tokens, width = hidden_states.shape
        x = hidden_states.reshape(rows * tokens, width)
        return FAMILIES[type(block).__name__].block(block, x, rows, real_of(mask)).view(rows, tokens, width)

    @torch.no_grad()
    def _below(self, batch: Batch) -> Tensor:
        """The output of the block below the lowest trainable one for a batch of one image. Each image is computed
        alone, cached or not, so that its numbers depend neither on its neighbours nor on where a run was resumed."""
        self._reading = True
        try:
            self._loss(batch)
        except _Reached as reached:
            return reached.states
        finally:
            self._reading = False
        raise AssertionError("the forward pass goes through every block")


class _Reached(Exception):
    def __init__(self, states: Tensor) -> None:
        super().__init__("the forward pass is as far as needed")
        self.states = states


def _single_images(batch: Batch) -> Iterator[tuple[bytes, Batch]]:
    """Each image with a key made from its pixels."""
    for at in range(len(batch.targets)):
        inputs = {name: value[at : at + 1] for name, value in batch.inputs.items()}
        digest = blake2b(inputs["pixel_values"].cpu().numpy().tobytes(), digest_size=16).digest()
        yield digest, replace(batch, inputs=inputs, targets=batch.targets[at : at + 1], images=1)
