"""The forward pass of a decoder by kernels, on one row of packed sequences without padding.

It computes what transformers computes: the parts of each block are its own modules, with or without adapters, and only
their combination is written here (decoders.py). Models are recognised by the class of their blocks; all others use the
eager backend. Before a run relies on the kernels, both backends are compared on the model itself (agreement.py).

Blocks below the lowest trainable one give a sequence the same output in every pass, so that is cached. Each sequence is
computed alone, cached or not: its numbers depend neither on its neighbours in a batch nor on where a run was
interrupted and resumed. The key is its token ids, the value its hidden states (2 d bytes per token in a 16-bit dtype).
Sequences are added until the memory limit is reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rankwise.forward.decoders import GEMMA, GEMMA3, GPT2, LLAMA, Decoder, NeoX
from rankwise.forward.reference import random_documents
from rankwise.kernels.attention import BLOCK
from rankwise.kernels.loss import head_divergence, head_log_probabilities, head_loss
from rankwise.rows.encoded.batches import Batch
from rankwise.rows.encoded.packing import flat, joined

DECODERS: tuple[Decoder, ...] = (LLAMA, GEMMA, GEMMA3, NeoX(), GPT2())
PROBED = (BLOCK + 23, 5, 14)
"""Lengths of the sequences that both backends are compared on."""


Compute = Callable[[Tensor, Tensor], Tensor]
"""Maps ids and positions (1, T) of a sequence to its hidden states (T, d)."""


class StateCache:
    """States by a key, up to `room` bytes."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._cached: dict[bytes, Tensor] = {}

    def of(self, key: bytes, compute: Callable[[], Tensor]) -> Tensor:
        states = self._cached.get(key)
        if states is None:
            states = compute()
            if states.nbytes <= self._room:
                self._room -= states.nbytes
                self._cached[key] = states
        return states


class Prefix:
    def __init__(self, compute: Compute, room: int) -> None:
        """`room` is the memory limit in bytes."""
        self._compute = compute
        self._cache = StateCache(room)

    @torch.no_grad()
    def __call__(self, inputs: Tensor, positions: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the hidden states (T, d) of packed sequences (1, T)."""
        parts = zip(inputs.split(list(lengths), 1), positions.split(list(lengths), 1), strict=True)
        return torch.cat([self._of(*part) for part in parts])

    def _of(self, ids: Tensor, positions: Tensor) -> Tensor:
        return self._cache.of(ids.cpu().numpy().tobytes(), partial(self._compute, ids, positions))


class FusedLoss:
    """Maps a flat batch to the sum of its losses in nats, a scalar with a gradient.

    From block `lowest` on, the first `recomputed` blocks use activation checkpointing: they save only their input and
    are recomputed in the backward pass, which gives the same numbers for half as much work again. Blocks below `lowest`
    get no gradient and must not change: their outputs are cached for each sequence, up to `room` bytes.
    """

    def __init__(self, module: nn.Module, *, lowest: int = 0, recomputed: int = 0, room: int = 0) -> None:
        self._module: Any = module
        self._lowest, self._recomputed = lowest, recomputed
        self._prefix = Prefix(self._below, room) if lowest else None

    def __call__(self, batch: Batch) -> Tensor:
        return self.with_hidden(batch)[0]

    def with_hidden(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss, and the input of the head (N, d) where there is one."""
        places = batch.loss_mask[0].nonzero()[:, 0]
        hidden = self.hidden(batch, places)
        weight = self._module.get_output_embeddings().weight
        return head_loss(hidden, weight, batch.targets[0, places]), hidden

    def log_probabilities(self, batch: Batch) -> Tensor:
        """Return the log-probability (N,) of each target of a flat batch, in float32."""
        places = batch.loss_mask[0].nonzero()[:, 0]
        weight = self._module.get_output_embeddings().weight
        return head_log_probabilities(self.hidden(batch, places), weight, batch.targets[0, places])

    def anchored(self, batch: Batch | None, text: Batch, base: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of a batch's losses, and that of the divergence from the base at the targets of another flat
        batch. Both are computed as one row. `base` (N, d) is what `hidden` gave with the adapter off."""
        whole = text if batch is None else joined(batch, text)
        learned = whole.targets.new_empty(0) if batch is None else batch.loss_mask[0].nonzero()[:, 0]
        others = whole.tokens - text.tokens + text.loss_mask[0].nonzero()[:, 0]
        hidden = self.hidden(whole, torch.cat([learned, others]))
        own, other = hidden.split([len(learned), len(others)])
        weight = self._module.get_output_embeddings().weight
        return head_loss(own, weight, whole.targets[0, learned]), head_divergence(other, weight, base)

    def hidden(self, batch: Batch, places: Tensor) -> Tensor:
        """Return the input of the head (N, d) at `places`; the last block is only computed there."""
        assert batch.lengths is not None and batch.position_ids is not None, "a flat batch has both"
        decoder, model = _known(self._module)
        layers = decoder.layers(model)
        x, context = decoder.start(model, batch)
        if self._prefix is not None:
            x = self._prefix(batch.input_ids, batch.position_ids, batch.lengths)
        for number in range(self._lowest, len(layers)):
            at = places if number + 1 == len(layers) else None
            block = partial(_block, decoder, layers[number], context=context, lengths=batch.lengths, places=at)
            again = torch.is_grad_enabled() and number < self._lowest + self._recomputed
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return decoder.end(model, x)

    def _below(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Return the input of the lowest trainable block for one sequence."""
        decoder, model = _known(self._module)
        lengths = (ids.shape[1],)
        x, context = decoder.start(model, Batch.of_tokens(ids, ids, ids.shape[1], positions, lengths))
        for layer in decoder.layers(model)[: self._lowest]:
            x = _block(decoder, layer, x, context, lengths)
        return x


def blocks_of(module: nn.Module) -> int:
    decoder, model = _known(module)
    return len(decoder.layers(model))


@contextmanager
def first_blocks(module: nn.Module, least: int = 0) -> Iterator[nn.Module]:
    """Leave a decoder of at least so many weights its first blocks alone, until one of each kind is among them, and at
    least two. Blocks are of one kind if their parts have the same classes, settings and sizes."""
    if sum(parameter.numel() for parameter in module.parameters()) < least:
        yield module
        return
    decoder, model = _known(module)
    blocks: Any = decoder.layers(model)
    kinds = [_kind(block) for block in blocks]
    count = max(2, 1 + max(map(kinds.index, kinds)))
    apart = list(blocks[count:])
    del blocks[count:]
    try:
        yield module
    finally:
        blocks.extend(apart)


def _kind(block: nn.Module) -> list[object]:
    plain = (int, float, str)
    return [
        (path, type(part), [(name, one) for name, one in vars(part).items() if isinstance(one, plain)
                            and name != "layer_idx"], [one.shape for one in part.parameters(recurse=False)])
        for path, part in block.named_modules()
    ]  # fmt: skip


def lowest_that_learns(module: nn.Module) -> int:
    """Return the number of the lowest trainable block, or 0 if something before all blocks is trainable."""
    decoder, model = _known(module)
    layers = decoder.layers(model)
    learning = [number for number, layer in enumerate(layers) if any(one.requires_grad for one in layer.parameters())]
    of_blocks = {id(one) for layer in layers for one in layer.parameters()}
    before = any(one.requires_grad and id(one) not in of_blocks for one in model.parameters())
    return 0 if before or not learning else learning[0]


def has_kernels(module: nn.Module, longest: int) -> bool:
    """Tell whether there are kernels for this model and for sequences of at most so many tokens."""
    return is_computed_by_kernels(module, longest) and not has_weights_that_learn(module)


def is_computed_by_kernels(module: nn.Module, longest: int) -> bool:
    """Tell the same of a forward pass alone."""
    model: Any = module
    decoder = decoder_of(model)
    if decoder is None:
        return False
    head, config, layers = model.get_output_embeddings(), model.config, decoder.layers(model.base_model)
    return (
        type(head) is nn.Linear
        and head.bias is None
        and getattr(config, "final_logit_softcapping", None) is None
        and not any(is_watched(part) or _drops(part) for part in module.modules())
        and not (getattr(config, "attention_dropout", 0.0) and any(layer.training for layer in layers))
        and next(module.parameters()).device.type == "cpu"
        and decoder.suits(model.base_model, longest)
    )


def decoder_of(module: Any) -> Decoder | None:
    """Find the decoder family by the class of the model's blocks."""
    for decoder in DECODERS:
        with suppress(AttributeError):
            layers = decoder.layers(module.base_model)
            if isinstance(layers, nn.ModuleList) and layers and all(_is_known(layer, decoder) for layer in layers):
                return decoder
    return None


def _is_known(layer: nn.Module, decoder: Decoder) -> bool:
    """Require the class to be transformers' own, since code that comes with a model may use the same name."""
    return type(layer).__name__ in decoder.blocks and type(layer).__module__.startswith("transformers.models.")


def _drops(part: nn.Module) -> bool:
    return isinstance(part, nn.Dropout) and part.training and part.p > 0


def is_watched(part: nn.Module) -> bool:
    """Tell whether hooks wait for its call or its forward method was replaced."""
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return any(hooks) or "forward" in vars(part)


def has_weights_that_learn(module: nn.Module) -> bool:
    """Tell whether a layer of the model itself is trainable; kernels assume that it is frozen."""
    theirs = (
        part for part in module.modules() if type(part).__module__.startswith(("torch.nn.modules.", "transformers."))
    )
    return any(parameter.requires_grad for part in theirs for parameter in part.parameters(recurse=False))


def probe(module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> Batch:
    """Make a batch of random sequences of such lengths, at most as long as the model's positions and attention
    window."""
    model: Any = module
    limits = (getattr(model.config, name, None) for name in ("max_position_embeddings", "sliding_window"))
    most = min([max(lengths), *(limit for limit in limits if limit)])
    vocabulary = model.get_output_embeddings().weight.shape[0]
    (batch,) = flat(random_documents(vocabulary, [min(one, most) for one in lengths], generator), sum(lengths))
    return batch


def _known(module: Any) -> tuple[Decoder, Any]:
    decoder = decoder_of(module)
    assert decoder is not None, "has_kernels says so"
    return decoder, module.base_model


def _block(
    decoder: Decoder, layer: Any, x: Tensor, context: Any, lengths: Sequence[int], places: Tensor | None = None
) -> Tensor:
    """Map (T, d) to the output of the block, computed only at `places` if they are given."""
    seen = decoder.attended(layer, x, context, lengths)
    return decoder.finished(layer, x, seen) if places is None else decoder.finished(layer, x[places], seen[places])
