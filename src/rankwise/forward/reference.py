"""Logits of a causal model at the positions that have a loss, and at no others.

The output head is the widest layer of a small model and its logits are the largest tensor of a step, but only the
tokens of answers have a loss. So the hidden states are reduced to those positions just before the head. What the
architecture does to its logits afterwards (scaling, soft caps) is unaffected, since it works elementwise.

Where sequences share a row, the model receives their positions, no mask and no cache. Only then does transformers
recognise the borders, at which positions restart. An architecture that ignores positions gives no error, so
`check_packs` tests the model first.

Where an encoder reads the input, `OutputLogits` gives those of the decoder at the positions of its output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.base.rotary_names import alike_up_to
from rankwise.errors import ModelError, is_out_of_memory
from rankwise.rows.encoded.batches import Batch, collate, input_length
from rankwise.rows.encoded.packing import lay
from rankwise.rows.text.tokenize import Tokens

PROBED = ((13, 2), (6, 9))
"""Lengths of sequences in two rows with different borders, because some models only read the positions of the first
row."""
LEAKED = 1e-5
"""Largest accepted difference, as a share of the largest logit. Computed in the same shape, a sequence that attends to
no other has the same bits in every dtype; the weakest leak measured (a tiny Lfm2 in float32) is 7e-5."""
LEAST_ROUNDED = 1e-4
ROUNDINGS = 8
"""Accepted rounding differences when the shape changes, in units of the dtype's epsilon. Random models of up to 24
blocks showed 2e-6 of the largest logit in float32 and up to 4 epsilon in bfloat16 and float16."""
ADVICE = "this model cannot be trained on packed rows. Set data.packing to false."


class SupervisedLogits:
    """Maps a batch to logits (N, V): one row per position with a loss, in the order of `batch.targets`."""

    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module

    def __call__(self, batch: Batch, **cached: Any) -> Tensor:
        """`cached` is a cache of tokens that every row continues, as the model takes it."""
        positions = batch.position_ids
        if positions is None and batch.input_ids.shape[1] > alike_up_to(self._module):
            read = batch.loss_mask.flip(1).cumsum(1).flip(1) > 0  # a row is as long as what its loss depends on
            positions = torch.arange(read.shape[1], device=read.device) * read
        packed = {} if positions is None else {"position_ids": positions}
        with logits_at(self._module, batch.loss_mask):
            return self._module(input_ids=batch.input_ids, use_cache=bool(cached), **packed, **cached).logits


@contextmanager
def logits_at(module: nn.Module, supervised: Tensor) -> Iterator[None]:
    """Inside, the output head receives the hidden states (N, d) of these positions (B, T) alone."""

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (arguments[0][supervised], *arguments[1:])

    model: Any = module
    hook = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield
    finally:
        hook.remove()


def every_logits(module: nn.Module, ids: Tensor) -> Tensor:
    """Map ids (T,) of one text, on any device, to logits (T, V), without gradients and without dropout."""
    model: Any = module
    device = next(model.parameters()).device
    with torch.no_grad(), _without_dropout(model):
        return model(input_ids=ids[None].to(device), use_cache=False).logits[0]


def check_packs(module: nn.Module, vocabulary: int) -> None:
    """Refuse a model whose logits for a sequence depend on what else is in its row. Probe ids are below
    `vocabulary`."""
    rows, others = _random_rows(vocabulary, 0), _random_rows(vocabulary, 1)
    changed = [[other[0], *row[1:]] for row, other in zip(rows, others, strict=True)]
    unchanged = torch.tensor(
        [index > 0 for row in rows for index, part in enumerate(row) for _ in range(input_length(part))]
    )
    device = next(module.parameters()).device
    forward = SupervisedLogits(module)
    with torch.no_grad(), _without_dropout(module):
        alone = torch.cat([forward(collate([part]).to(device)) for row in rows for part in row]).float()
        try:
            packed, beside_others = (forward(lay(laid).to(device)).float() for laid in (rows, changed))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(f"{type(module).__name__} does not accept position ids ({error}); {ADVICE}") from error
    largest = alone.abs().max()
    leaked = ((packed - beside_others)[unchanged.to(device)].abs().max() / largest).item()
    differing = ((packed - alone).abs().max() / largest).item()
    if not (leaked <= LEAKED and differing <= _rounding(module)):  # written written so that NaN is refused too
        raise ModelError(
            f"{type(module).__name__} lets packed sequences influence each other: the logits of a sequence differ by "
            f"{differing:.2%} of the largest logit from those it has alone, and by {leaked:.2%} if the sequence before "
            f"it changes; {ADVICE}"
        )


def _random_rows(vocabulary: int, seed: int) -> list[list[Tokens]]:
    generator = torch.Generator().manual_seed(seed)
    return [random_documents(vocabulary, row, generator) for row in PROBED]


def random_documents(vocabulary: int, lengths: Sequence[int], generator: torch.Generator) -> list[Tokens]:
    """Make random sequences with so many positions each and a loss on every token."""
    rows = [torch.randint(vocabulary, (length + 1,), generator=generator).tolist() for length in lengths]
    return [Tokens(tuple(row), (True,) * len(row)) for row in rows]


def _rounding(module: nn.Module) -> float:
    """Return the accepted rounding for the coarsest dtype among the parameters."""
    coarsest = max(torch.finfo(value.dtype).eps for value in module.parameters() if value.is_floating_point())
    return max(LEAST_ROUNDED, ROUNDINGS * coarsest)


@contextmanager
def _without_dropout(module: nn.Module) -> Iterator[None]:
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


class OutputLogits:
    """Maps a batch to logits (N, V): one row for each token of the outputs, in the order of `batch.targets`."""

    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module

    def __call__(self, batch: Batch) -> Tensor:
        module = self._module
        real = batch.inputs["attention_mask"]
        with logits_at(module, batch.loss_mask):
            return module(
                input_ids=batch.input_ids.masked_fill(real == 0, module.config.pad_token_id or 0),
                attention_mask=real,
                decoder_input_ids=module.prepare_decoder_input_ids_from_labels(labels=batch.targets),
                use_cache=False,
            ).logits


def usable_positions(module: nn.Module) -> int | None:
    """The most tokens that position embeddings have room for, where the first of them are reserved: RoBERTa and its kin
    number the tokens of a text from the position after that of padding, so of 514 positions 512 can be used."""
    reserved = [
        part.num_embeddings - part.padding_idx - 1
        for name, part in module.named_modules()
        if isinstance(part, nn.Embedding) and name.endswith("position_embeddings") and part.padding_idx is not None
    ]
    return min(reserved, default=None)
