"""Few tokens by compiled code (kernels/decode.py), for decoders whose blocks are Llama's: one more of each row, or a
short prompt.

Everything is taken from the model's own modules, with the adapters that are active. Weights in int8 are read as they
lie, and so are blocks of GGUF files. Whatever else there is, such as NF4, DoRA, a head that was trained, rows with
different adapters, or a GPU, is left to the model's own forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapters.heads import HeadWrapper
from rankwise.adapters.wrapper import AdapterWrapper
from rankwise.forward.decoders import Decoder, DecoderParts, angles
from rankwise.forward.fused import decoder_of, is_computed_by_kernels
from rankwise.kernels.decode import (
    ACTIVATIONS,
    READERS,
    DecodeKernel,
    DecoderBlock,
    DecoderSettings,
    LowRankFactors,
    StoredLinear,
    can_decode,
)
from rankwise.kernels.linear import LinearSpec, linear_spec_of
from rankwise.kernels.quantized.formats import Int8, Int8Products
from rankwise.kernels.quantized.given_back import GivenBack
from rankwise.kernels.quantized.tensor import QuantizedTensor
from rankwise.rows.encoded.batches import Batch

MOST_ROWS = 16
"""Up to so many rows reading the weights takes longer than computing; the model's own products are faster for more."""
PROMPT = 96
"""To unpack all weights takes the model longer than so many tokens take compiled code, which unpacks none."""
MOST_ADAPTERS = 8
"""Whose factors are held at once."""


class DecodeStep:
    """The model's weights must not change while it is used."""

    def __init__(self, module: nn.Module, decoder: Decoder, parts: DecoderParts, specs: list[LinearSpec]) -> None:
        self._module: Any = module
        self._decoder, self._model = decoder, self._module.base_model
        *linears, head = map(_stored, specs)
        blocks = [
            DecoderBlock([norm.factor.float() for norm in norms], linears[first : first + len(parts.linears[0])])
            for norms, first in zip(parts.norms, range(0, len(linears), len(parts.linears[0])), strict=True)
        ]
        self._settings = DecoderSettings(
            eps=parts.last.eps, scale=parts.scale, heads=linears[0].shape[0] // parts.size,
            groups=linears[1].shape[0] // parts.size, size=parts.size, activation=parts.activation,
            dtype=parts.last.weight.dtype,
        )  # fmt: skip
        self._count = len(blocks)
        unpacks = any(isinstance(spec.weight, QuantizedTensor) for spec in specs)
        self.most_tokens = PROMPT if unpacks else 1
        """The most tokens of one row that are read faster here than by the model."""
        self._kernel = DecodeKernel(blocks, parts.last.factor.float(), head, self._settings)
        self._factors: dict[str | None, LowRankFactors | None] = {}

    @classmethod
    def of(cls, module: nn.Module) -> DecodeStep | None:
        """Return None where the model's own forward pass is needed, whichever adapters are active."""
        model: Any = module
        decoder = decoder_of(model) if _is_computable(module) else None
        parts = None if decoder is None else decoder.parts(model.base_model)
        if decoder is None or parts is None or parts.activation not in ACTIVATIONS:
            return None
        hosts = [one.base_layer if isinstance(one, AdapterWrapper) else one for row in parts.linears for one in row]
        specs = [linear_spec_of(one) for one in (*hosts, model.get_output_embeddings())]
        there = [spec for spec in specs if spec is not None and _is_readable(spec.weight)]
        width, eps = len(parts.linears[0]), {norm.eps for norms in parts.norms for norm in norms} | {parts.last.eps}
        shapes = {tuple(spec.weight.shape for spec in there[at : at + width]) for at in range(0, len(hosts), width)}
        if len(there) < len(specs) or len(eps) > 1 or len(shapes) > 1 or parts.last.weight.dtype not in PLAIN:
            return None
        return cls(module, decoder, parts, there) if can_decode() else None

    def knows(self, key: str | None) -> bool:
        """Whether it computes what is active of the adapters."""
        return self._factors_of(key) is not None

    def __call__(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: Any, key: str | None) -> Tensor | None:
        """Return the logits (B, V) behind ids (B, 1), or behind the last of (1, N), whose keys and values are added to
        the cache, or None. `mask` (B, T) says which of all positions are seen. `key` stands for the adapters that are
        active."""
        settings, factors = self._settings, self._factors_of(key)
        stored = {one.dtype for layer in cache.layers if layer.is_initialized for one in (layer.keys, layer.values)}
        fits = stored <= {settings.dtype} and len(cache.layers) == self._count
        if factors is None or not fits or torch.is_autocast_enabled("cpu"):
            return None
        if not self._decoder.suits(self._model, mask.shape[1]) or (len(ids) > 1 and ids.shape[1] > 1):
            return None
        count, mask, logits = ids.shape[1], mask.bool(), None
        for first in range(0, count, MOST_ROWS):
            part, until = slice(first, first + MOST_ROWS), mask.shape[1] - max(0, count - first - MOST_ROWS)
            tokens, places = ids[:, part].reshape(1, -1), positions[:, part].reshape(1, -1)
            x = self._model.embed_tokens(tokens[0]).float()
            cos, sin = angles(self._model, x, Batch.of_tokens(tokens, tokens, tokens.shape[1], places))
            if cos.shape[1] != settings.size:
                return None
            blank = x.new_empty((len(ids), settings.groups, len(x) // len(ids), settings.size), dtype=settings.dtype)
            caches = [layer.update(blank, blank) for layer in cache.layers]
            logits = self._kernel(
                x, cos.contiguous(), sin.contiguous(), mask[:, :until].contiguous(), caches, factors
            )  # fmt: skip
        return logits

    def _factors_of(self, key: str | None) -> LowRankFactors | None:
        """The modules are looked at anew: an adapter that came later is a module around a layer, and may have brought
        a head."""
        if key not in self._factors:
            parts = self._decoder.parts(self._model) if _is_computable(self._module) else None
            specs = [[None]] if parts is None else [[linear_spec_of(one) for one in row] for row in parts.linears]
            for old in list(self._factors)[: 1 - MOST_ADAPTERS]:
                del self._factors[old]
            self._factors[key] = _factors(specs)
        return self._factors[key]


def _factors(specs: Sequence[Sequence[LinearSpec | None]]) -> LowRankFactors | None:
    """None where a layer is no linear one with at most two factors."""
    pairs = [[None if one is None else (one.A, one.B) for one in row] for row in specs]
    if any(pair is None for row in pairs for pair in row):
        return None
    return LowRankFactors([
        [None if A is None or B is None else (A.detach().float().contiguous(), B.detach().float().contiguous())
         for A, B in (pair or (None, None) for pair in row)]
        for row in pairs
    ])  # fmt: skip


PLAIN = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def _is_computable(module: nn.Module) -> bool:
    """A part that was trained as a whole, such as a norm, is another module than the one that is named so."""
    return is_computed_by_kernels(module, 1) and not any(isinstance(one, HeadWrapper) for one in module.modules())


def _is_readable(weight: Tensor) -> bool:
    if not isinstance(weight, QuantizedTensor):
        return weight.dtype in PLAIN and weight.is_contiguous() and type(weight) in (Tensor, nn.Parameter)
    known = weight.format.name in (*READERS, "BF16") or isinstance(weight.format, Int8Products)
    return known and not isinstance(weight.format, GivenBack) and not weight.transposed


@torch.no_grad()
def _stored(linear: LinearSpec) -> StoredLinear:
    weight, scales, bias = linear.weight, None, None if linear.bias is None else linear.bias.float()
    outputs, inputs = weight.shape
    if not isinstance(weight, QuantizedTensor):
        kind, numbers = PLAIN[weight.dtype], weight.detach()
    elif isinstance(weight.format, Int8 | Int8Products):
        kind, (numbers, scales) = "int8", weight.parts[-2:]
    else:
        kind, numbers = weight.format.name.replace("BF16", "bfloat16"), weight.parts[0]
    return StoredLinear(kind, numbers, (outputs, inputs), scales, bias)
