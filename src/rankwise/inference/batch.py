"""Rows of answers that are written together, a token of each at a time: the one loop of every command.

    GenerationBatch all prompts are read at once, padded on the left; answers begin together and leave when they ended
    EncodedBatch    the same where an encoder reads the prompts and a decoder writes
    GrowingBatch    rows join and leave at any time, each with its own adapter (adapters/by_row.py)

Keys and values of all rows lie in one cache, so that every row's next token is written at the same place:

    row 1   . . a b c d | e          T positions, then one more with each step
    row 2   a b c d e f | g          a row that joins is read alone, in parts if it is long, then laid beside the others
    row 3   . . . . a b | c          a row that ends is taken out, and padding that no row needs any more is cut

What a prompt shares with an earlier one is not read again (prefixes.py). All logits pass `_choose`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, EncoderDecoderCache

from rankwise.errors import EvaluationError
from rankwise.inference.kv_cache import RoomyLayer, cache_name, is_of_keys_and_values, new_cache
from rankwise.inference.prefixes import Prefixes
from rankwise.inference.sampling import GREEDY, Chosen, Sampler, chosen

ByRow = Callable[[Sequence[str | None]], AbstractContextManager[None]]


@dataclass(eq=False)
class GenerationRow:
    """An answer that is being written."""

    prompt: list[int]
    adapter: str | None = None
    sampler: Sampler = field(default_factory=lambda: Sampler.seeded(GREEDY, 0))
    ids: list[int] = field(default_factory=list)
    """The tokens of the answer so far."""
    reused: int = 0
    """Tokens of the prompt that were not read again."""
    read: int = 0
    """Tokens of the prompt that have keys and values."""
    cache: Any = None
    """These, until the whole prompt is read."""
    damage: float | None = None
    """The highest logit of its next token, where that is not finite."""

    def check(self) -> None:
        """EvaluationError where the model gave no numbers for it."""
        if self.damage is not None:
            raise EvaluationError(
                f"the highest logit of an answer is {self.damage}. The model's weights are damaged, or its number "
                "format overflows; try --dtype float32 to find out which."
            )


Draw = Callable[[Tensor, Sequence[GenerationRow]], list[Chosen]]
"""The next token of each row by its logits (B, V)."""


def by_samplers(logits: Tensor, rows: Sequence[GenerationRow]) -> list[Chosen]:
    return chosen(logits, [row.sampler for row in rows])


class GenerationBatch:
    """The rows that are being written."""

    def __init__(self, module: nn.Module, draw: Draw = by_samplers) -> None:
        self._module: Any = module
        self._draw = draw
        self._name = cache_name(module)
        self._takes = inspect.signature(self._module.forward).parameters
        self._cache: Any = None
        self._encoded: dict[str, Any] = {}
        """What a decoder is given beside its own tokens."""
        self._mask = torch.empty(0)
        self.rows: list[GenerationRow] = []

    @torch.inference_mode()
    def begin(self, rows: Sequence[GenerationRow]) -> list[Chosen | None]:
        """Read all prompts, and choose the first tokens of their answers."""
        self.rows, self._cache = list(rows), new_cache(self._module)
        ids, self._mask = _padded([row.prompt for row in rows], self._device, left=True)
        return self._choose(self._forward(ids, self._mask, self._cache, rows), rows)

    @torch.inference_mode()
    def step(self) -> list[Chosen | None]:
        """One more token for each row, in the order of `rows`; None where the model gives no numbers for a row, which
        must leave then."""
        ids = torch.tensor([(row.ids or row.prompt)[-1:] for row in self.rows], device=self._device)
        self._mask = F.pad(self._mask, (0, 1), value=1)
        if self._cache is None:  # of a model that keeps nothing
            ids, _ = _padded([[*row.prompt, *row.ids] for row in self.rows], self._device, left=True)
        return self._choose(self._forward(ids, self._mask, self._cache, self.rows), self.rows)

    @property
    def lets_go(self) -> bool:
        """Whether rows may leave before the last has ended."""
        return self._cache is not None and is_of_keys_and_values(self._cache)

    @torch.inference_mode()
    def leave(self, ended: Sequence[GenerationRow]) -> None:
        """Take rows out."""
        staying = [number for number, row in enumerate(self.rows) if row not in ended]
        if len(staying) == len(self.rows):
            return
        self.rows, self._mask = [self.rows[number] for number in staying], self._mask[staying]
        if staying:
            self._cache.batch_select_indices(torch.tensor(staying, device=self._device))

    @property
    def _device(self) -> torch.device:
        return self._module.get_input_embeddings().weight.device

    def _forward(self, ids: Tensor, mask: Tensor, cache: Any, rows: Sequence[GenerationRow]) -> Tensor:
        """The logits (B, V) of each row's last position."""
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        given = {"attention_mask": mask, "position_ids": positions, "logits_to_keep": 1}
        given = {name: value for name, value in given.items() if name in self._takes} | self._encoded
        inputs = self._module.prepare_inputs_for_generation(
            ids, is_first_iteration=mask.shape[1] == ids.shape[1], use_cache=cache is not None,
            **given, **({} if cache is None else {str(self._name): cache}),
        )  # fmt: skip
        return self._module(**inputs, return_dict=True).logits[:, -1].float()

    def _choose(self, logits: Tensor, rows: Sequence[GenerationRow]) -> list[Chosen | None]:
        """None for a row whose logits are no numbers; the others do not depend on it."""
        highest = logits.amax(-1)
        sound = highest.isfinite()
        if not sound.all():
            logits = logits.where(sound[:, None], 0)
        every: list[Chosen | None] = []
        for row, one, value in zip(rows, self._draw(logits, rows), highest.tolist(), strict=True):
            row.damage = None if math.isfinite(value) else value
            if row.damage is None:
                row.ids.append(one.token)
            every.append(one if row.damage is None else None)
        return every


class EncodedBatch(GenerationBatch):
    """An encoder has positions of its own, so prompts are padded on the right; every answer begins at position 0."""

    @property
    def lets_go(self) -> bool:
        return False

    @torch.inference_mode()
    def begin(self, rows: Sequence[GenerationRow]) -> list[Chosen | None]:
        config = self._module.config
        self.rows, own = list(rows), config.get_text_config(decoder=True)
        ids, mask = _padded([row.prompt for row in rows], self._device, left=False)
        self._encoded = {
            "encoder_outputs": self._module.get_encoder()(input_ids=ids, attention_mask=mask, return_dict=True),
            "attention_mask": mask,
        }
        self._cache = EncoderDecoderCache(DynamicCache(config=own), DynamicCache(config=own))
        first = torch.full((len(rows), 1), config.decoder_start_token_id, device=self._device)
        self._mask = torch.ones_like(first)
        return self._choose(self._forward(first, self._mask, self._cache, rows), rows)


class GrowingBatch(GenerationBatch):
    """`by_row` lays the adapters of these names over the rows of a batch."""

    def __init__(self, module: nn.Module, by_row: ByRow, prefixes: Prefixes | None = None) -> None:
        super().__init__(module)
        self._by_row, self._prefixes = by_row, Prefixes(0) if prefixes is None else prefixes

    def join(self, row: GenerationRow) -> Chosen:
        """Read a prompt, and choose the first token of its answer. EvaluationError where the model gives no numbers."""
        first = self.read(row, len(row.prompt))
        assert first is not None, "all of it is read"
        return first

    @torch.inference_mode()
    def read(self, row: GenerationRow, most: int) -> Chosen | None:
        """Read up to `most` more tokens of the prompt. Returns the first token of the answer once the whole prompt is
        read, and None before that. EvaluationError where the model gives no numbers."""
        if row.cache is None:
            row.cache = self._with_beginning(row)
        begin, row.read = row.read, min(len(row.prompt), row.read + most)
        ids = torch.tensor([row.prompt[begin : row.read]], device=self._device)
        mask = ids.new_ones((1, row.read))
        logits = self._forward(ids, mask, row.cache, [row])
        if row.read < len(row.prompt):
            return None
        cache, row.cache = row.cache, None
        self.rows.append(row)
        (first,) = self._choose(logits, [row])
        if first is not None:
            self._prefixes.add(row.prompt, row.adapter, [(one.keys[0], one.values[0]) for one in cache.layers])
        self._lay_beside(cache, mask)
        row.check()
        return first

    @torch.inference_mode()
    def leave(self, ended: Sequence[GenerationRow]) -> None:
        """Take rows out, in the middle of their answers or at their ends."""
        for number, row in enumerate(self.rows):
            if row in ended:
                self._store(number)
        super().leave(ended)
        if not self.rows:
            self._cache = None
            return
        unused = int(self._mask.argmax(-1).min())  # the first position that any row needs
        self._mask = self._mask[:, unused:]
        for layer in self._cache.layers:
            layer.keys, layer.values = (one[:, :, unused:].contiguous() for one in (layer.keys, layer.values))

    def _with_beginning(self, row: GenerationRow) -> Any:
        """The cache of a prompt that is read from here on, with what need not be read again."""
        cache: Any = new_cache(self._module)
        row.reused, layers = self._prefixes.beginning_of(row.prompt, row.adapter)
        for layer, (keys, values) in zip(cache.layers, layers, strict=False):
            layer.update(keys[None], values[None])
        row.read = row.reused
        return cache

    def _store(self, number: int) -> None:
        """What the row has read, for others that begin so: its last token was chosen and not read."""
        row = self.rows[number]
        if row.damage is None and self._cache is not None:
            ids = [*row.prompt, *row.ids[:-1]]
            own = [(one.keys[number], one.values[number]) for one in self._cache.layers]
            layers = [(keys[:, -len(ids) :], values[:, -len(ids) :]) for keys, values in own]
            self._prefixes.add(ids, row.adapter, layers)

    def _forward(self, ids: Tensor, mask: Tensor, cache: Any, rows: Sequence[GenerationRow]) -> Tensor:
        with self._by_row([row.adapter for row in rows]):
            return super()._forward(ids, mask, cache, rows)

    def _lay_beside(self, cache: Any, mask: Tensor) -> None:
        """A row of its own cache beside the others; the shorter side is padded on the left."""
        if self._cache is None:
            self._cache, self._mask = cache, mask
            return
        width = max(self._mask.shape[1], mask.shape[1])
        self._mask = torch.cat([_widened(one, width) for one in (self._mask, mask)])
        for layer, new in zip(self._cache.layers, cache.layers, strict=True):
            for name in ("keys", "values"):
                both = [_widened(getattr(one, name).transpose(-1, -2), width) for one in (layer, new)]
                setattr(layer, name, torch.cat(both).transpose(-1, -2).contiguous())


def can_grow(module: nn.Module) -> bool:
    """Whether the model keeps all keys and values of all layers, and nothing else."""
    cache = new_cache(module)
    return cache is not None and all(type(layer) is RoomyLayer for layer in cache.layers)


def _widened(values: Tensor, width: int) -> Tensor:
    """The last dimension, with zeros on the left."""
    return F.pad(values, (width - values.shape[-1], 0))


def _padded(prompts: Sequence[Sequence[int]], device: torch.device, *, left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask. What stands in the place of padding has no effect."""
    width = max(map(len, prompts))
    rows = [(list(ids), [0] * (width - len(ids))) for ids in prompts]
    ids = [pad + own if left else own + pad for own, pad in rows]
    mask = [pad + [1] * len(own) if left else [1] * len(own) + pad for own, pad in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
