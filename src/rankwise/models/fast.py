"""The forward pass of Llama and of what is built alike, by kernels, for a row of documents without any padding.

What is computed is what transformers computes: each block's parts are taken from its own modules, adapted or not, and
only how they are put together is written here. A model is known by the class of its blocks; any other, and any part
that a kernel does not take, goes the plain way. `agrees` compares both on the model itself, logits and gradients,
before a run relies on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankwise.data.batches import Batch
from rankwise.data.flat import flat
from rankwise.errors import is_out_of_memory
from rankwise.kernels.activation import Activated, Activation
from rankwise.kernels.attention import BLOCK, causal_attention
from rankwise.kernels.entrance import Entrance, Straight, entered
from rankwise.kernels.linear import piece_of, shared_linears
from rankwise.kernels.loss import head_loss
from rankwise.kernels.norm import RmsNorm
from rankwise.kernels.rotary import rotated
from rankwise.models.causal import random_documents

BLOCKS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
"""Two norms, attention with rotary positions (in Qwen3 with normed heads), a gated feed-forward layer, and no more."""
ACTIVATIONS: dict[str, Activation] = {
    "SiLUActivation": "silu",
    "SiLU": "silu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu-tanh",
    "NewGELUActivation": "gelu-tanh",
}
"""By the class of the module; any other is called as it is."""
BY_LONGEST = {"dynamic", "longrope"}
"""Rotary positions that depend on the longest document of a call, and so on what lies beside a document."""
PROBED = (BLOCK + 23, 5, 14)
"""Lengths of the documents that `agrees` looks at."""
NOISE = 0.02


class FastLoss:
    """Called with a flat batch, gives the sum of its losses in nats, as a scalar that autograd knows."""

    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module

    def __call__(self, batch: Batch) -> Tensor:
        assert batch.lengths is not None, "flat batches say how long their documents are"
        places = batch.supervised[0].nonzero()[:, 0]
        hidden = _hidden(self._module.model, batch, places)
        head = self._module.lm_head
        return head_loss(hidden, head.weight, batch.targets[0, places])


def is_fast(module: nn.Module, longest: int) -> bool:
    """Whether there are kernels for this model, with documents of at most so many tokens."""
    inner, head = getattr(module, "model", None), getattr(module, "lm_head", None)
    layers = getattr(inner, "layers", None)
    if not isinstance(layers, nn.ModuleList) or type(head) is not nn.Linear or head.bias is not None:
        return False
    config: Any = module.config
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return (
        all(_is_known(layer) for layer in layers)
        and not any(_is_watched(part) for part in module.modules())
        and next(module.parameters()).device.type == "cpu"
        and (window is None or window >= longest)
        and getattr(getattr(inner, "rotary_emb", None), "rope_type", "dynamic") not in BY_LONGEST
        and not (getattr(config, "attention_dropout", 0.0) and any(layer.training for layer in layers))
    )


def _is_known(layer: nn.Module) -> bool:
    """By its class, which must be the library's own: code that comes with a model may borrow a name."""
    return type(layer).__name__ in BLOCKS and type(layer).__module__.startswith("transformers.models.")


def _is_watched(part: nn.Module) -> bool:
    """Somebody waits for its call, or has replaced what it does."""
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return any(hooks) or "forward" in vars(part)


def agrees(module: nn.Module, learned: Sequence[nn.Parameter], plain: Callable[[Batch], Tensor]) -> bool:
    """Whether logits and gradients on random documents are those of `plain` (a batch to its logits), within the
    rounding of the number format. `learned` are moved meanwhile, since what starts at zero would tell nothing."""
    model: Any = module
    generator = torch.Generator().manual_seed(0)
    documents = random_documents(model.lm_head.weight.shape[0], PROBED, generator)
    (batch,) = flat(documents, sum(PROBED))
    before = [parameter.detach().clone() for parameter in learned]
    try:
        with torch.no_grad():
            for parameter in learned:
                parameter += NOISE * torch.randn(parameter.shape, generator=generator).to(parameter)
        logits = plain(batch)
        wanted = F.cross_entropy(logits.float(), batch.targets[0], reduction="sum")
        ours = torch.cat([part.flatten() for part in _gradients(FastLoss(module)(batch), learned)])
        theirs = torch.cat([part.flatten() for part in _gradients(wanted, learned)])
        with torch.no_grad():
            found = model.lm_head(_hidden(model.model, batch, torch.arange(sum(PROBED))))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return False
    finally:
        with torch.no_grad():
            for parameter, value in zip(learned, before, strict=True):
                parameter.copy_(value)
    rounding = torch.finfo(next(module.parameters()).dtype).eps
    return _near(found, logits, max(1e-4, 3 * rounding)) and _near(ours, theirs, max(1e-3, 48 * rounding))


def _gradients(total: Tensor, learned: Sequence[nn.Parameter]) -> list[Tensor]:
    found = torch.autograd.grad(total, list(learned), allow_unused=True) if learned else ()
    return [torch.zeros_like(one) if grad is None else grad for one, grad in zip(learned, found, strict=True)]


def _near(found: Tensor, wanted: Tensor, share: float) -> bool:
    """So that NaN is not."""
    return bool((found.double() - wanted.double()).norm() <= share * wanted.double().norm())


def _hidden(model: Any, batch: Batch, places: Tensor) -> Tensor:
    """(N, d): what the head gets at `places`, where alone the last block's own outputs are needed."""
    assert batch.lengths is not None, "asked before"
    x = model.embed_tokens(batch.inputs[0])
    turns = tuple(angles[0] for angles in model.rotary_emb(x[None], position_ids=batch.positions))
    for number, layer in enumerate(model.layers, start=1):
        seen = _attended(layer, x, turns, batch.lengths)
        if number == len(model.layers):
            seen, x = seen[places], x[places]
        x = x + _linears([layer.self_attn.o_proj], Straight(), seen)[0]
        x = x + _fed_forward(layer, x)
    return entered(_norm(model.norm), x)


def _attended(layer: Any, x: Tensor, turns: tuple[Tensor, ...], lengths: Sequence[int]) -> Tensor:
    """(T, d) to (T, H * D), before the output projection."""
    attention = layer.self_attn
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    q, k, v = (
        values.view(len(x), -1, attention.head_dim) for values in _linears(projections, _norm(layer.input_layernorm), x)
    )
    if hasattr(attention, "q_norm"):
        q, k = entered(_norm(attention.q_norm), q), entered(_norm(attention.k_norm), k)
    q, k, v = (values.transpose(0, 1) for values in (q, k, v))
    return causal_attention(rotated(q, *turns), rotated(k, *turns), v, lengths, attention.scaling).flatten(1)


def _fed_forward(layer: Any, x: Tensor) -> Tensor:
    mlp = layer.mlp
    gate, up = _linears([mlp.gate_proj, mlp.up_proj], _norm(layer.post_attention_layernorm), x)
    known = ACTIVATIONS.get(type(mlp.act_fn).__name__)
    if known is None:
        return _linears([mlp.down_proj], Straight(), mlp.act_fn(gate) * up)[0]
    return _linears([mlp.down_proj], Activated(known), gate, up)[0]


def _norm(module: Any) -> RmsNorm:
    return RmsNorm(module.weight, module.variance_epsilon)


def _linears(modules: Sequence[nn.Module], entrance: Entrance, *values: Tensor) -> Sequence[Tensor]:
    """Of what `entrance` makes of the values; in one step, unless one of them is more than two factors."""
    pieces = [piece_of(module) for module in modules]
    there = [piece for piece in pieces if piece is not None]
    if len(there) == len(pieces):
        return shared_linears(entrance, values, there)
    x = entered(entrance, *values)
    return [module(x) for module in modules]
