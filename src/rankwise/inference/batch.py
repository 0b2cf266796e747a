"""Rows of answers that are written together, a token of each at a time: the one loop of every command.

    GenerationBatch all prompts are read at once, padded on the left; answers begin together and leave when they ended
    EncodedBatch    the same where an encoder reads the prompts and a decoder writes
    GrowingBatch    rows join and leave at any time, each with its own adapter (adapters/by_row.py)

Keys and values of all rows lie in one cache, so that every row's next token is written at the same place:

    row 1   . . a b c d | e          T positions, then one more with each step
    row 2   a b c d e f | g          a row that joins is read alone, in parts if it is long, then laid beside the others
    row 3   . . . . a b | c          a row that ends is taken out, and padding that no row needs any more is cut

An answer that is held to a constraint (constraints/matcher.py) takes the tokens that can only follow without a forward
pass for each: they are read together with the last chosen one, while rows with fewer unread tokens are padded.

    row 1   . . a b c d | . . e
    row 2   a b c d e f | g h i      h and i had to follow g

What a prompt shares with an earlier one is not read again (prefixes.py). All logits pass `_choose`.

Where rotary angles depend on a row's length (base/rotary_names.py), long prompts are read at once and share nothing. A
row that outgrows the length up to which `longrope` is alike is read anew, as transformers does for Phi-3.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, EncoderDecoderCache

from rankwise.base.rotary_names import alike_up_to
from rankwise.constraints.matcher import Matcher
from rankwise.errors import EvaluationError
from rankwise.forward.decode_step import MOST_ROWS, DecodeStep
from rankwise.inference.kv_cache import RoomyLayer, cache_name, is_of_keys_and_values, new_cache
from rankwise.inference.prefixes import Prefixes
from rankwise.inference.sampling import GREEDY, Chosen, Sampler, chosen

NO_NUMBERS = (
    "the highest logit of an answer is {}. The model's weights are damaged, or its number format overflows; try "
    "--dtype float32 to find out which."
)
ByRow = Callable[[Sequence[str | None]], AbstractContextManager[None]]


@dataclass(eq=False)
class GenerationRow:
    """An answer that is being written."""

    prompt: list[int]
    adapter: str | None = None
    sampler: Sampler = field(default_factory=lambda: Sampler.seeded(GREEDY, 0))
    matcher: Matcher | None = None
    """What the answer is held to."""
    ids: list[int] = field(default_factory=list)
    """The tokens of the answer so far."""
    given_out: int = 0
    """How many of them a step has returned."""
    unread: int = 0
    """How many of them, the last ones, have no keys and values yet."""
    reused: int = 0
    """Tokens of the prompt that were not read again."""
    read: int = 0
    """Tokens of the prompt, and of those that every answer begins with, that have keys and values."""
    cache: Any = None
    """These, until all of them are read."""
    problem: str | None = None
    """Why it cannot go on: the model gave no numbers for it, or its constraint cannot be followed."""

    def hold_to(self, matcher: Matcher, most: int | None = None) -> GenerationRow:
        """Hold the answer to a constraint. It begins with the tokens that are certain, `most` of them."""
        self.matcher, self.ids = matcher, matcher.forced()[:most]
        self.unread = len(self.ids)
        return self

    def follow(self, matcher: Matcher, token: int) -> None:
        """Append what must follow a chosen token."""
        forced = matcher.take(token)
        self.ids += forced
        self.unread += len(forced)
        self.sampler.counts.update(forced)
        self.problem = matcher.problem

    def check(self) -> None:
        """EvaluationError where it cannot go on."""
        if self.problem is not None:
            raise EvaluationError(f"{self.problem.removesuffix('.')}.")


Draw = Callable[[Tensor, Sequence[GenerationRow], Tensor | None], list[Chosen]]
"""The next token of each row by its logits (B, V), among those that are allowed (B, V), or among all."""
RowTokens = list[Chosen] | None
"""What a step adds to a row: nothing while it has unread tokens; None where it cannot go on."""


def by_samplers(logits: Tensor, rows: Sequence[GenerationRow], allowed: Tensor | None) -> list[Chosen]:
    return chosen(logits, [row.sampler for row in rows], allowed)


def _allowed(rows: Sequence[GenerationRow], logits: Tensor) -> Tensor:
    """What each row may go on with (B, V)."""
    allowed = np.ones(logits.shape, bool)
    for place, row in zip(allowed, rows, strict=True):
        if row.matcher is not None:
            place[:] = row.matcher.allowed()
    return torch.from_numpy(allowed).to(logits.device)


class GenerationBatch:
    """The rows that are being written."""

    def __init__(self, module: nn.Module, draw: Draw = by_samplers) -> None:
        self._module: Any = module
        self._draw = draw
        self._name = cache_name(module)
        self._alike, self._anew = (alike_up_to(module, *one) for one in ([], [["longrope"]]))
        self._takes = inspect.signature(self._module.forward).parameters
        self._cache: Any = None
        self._encoded: dict[str, Any] = {}
        """What a decoder is given beside its own tokens."""
        self._mask = torch.empty(0)
        self._kernel: list[DecodeStep | None] = []
        """Once it was looked for."""
        self.rows: list[GenerationRow] = []

    @torch.inference_mode()
    def begin(self, rows: Sequence[GenerationRow]) -> list[RowTokens]:
        """Read all prompts, and choose the first tokens of their answers."""
        self.rows, self._cache = list(rows), new_cache(self._module)
        return self._read_all()

    def _read_all(self) -> list[RowTokens]:
        """Read everything that the rows hold."""
        ids, self._mask = _padded([[*row.prompt, *row.ids] for row in self.rows], self._device, left=True)
        for row in self.rows:
            row.unread = 0
        return self._choose(self._forward(ids, self._mask, self._cache, self.rows), self.rows)

    @torch.inference_mode()
    def step(self) -> list[RowTokens]:
        """What each row goes on with, in the order of `rows`. A row that cannot go on must leave."""
        if self._cache is None:  # of a model that keeps nothing
            return self._read_all()
        lengths = [len(row.prompt) + len(row.ids) for row in self.rows]
        if any(one - row.unread <= self._anew < one for one, row in zip(lengths, self.rows, strict=True)):
            self._cache = new_cache(self._module)
            return self._read_all()
        unread = [row.unread for row in self.rows]
        width = -(-sum(unread) // len(unread))
        width = width if width > 1 and self._takes_gaps else 1
        parts = [row.ids[len(row.ids) - row.unread :][:width] for row in self.rows]
        ids, mask = _padded(parts, self._device, left=True)
        self._mask = torch.cat([self._mask, mask], 1)
        for row, part in zip(self.rows, parts, strict=True):
            row.unread -= len(part)
        return self._choose(self._forward(ids, self._mask, self._cache, self.rows), self.rows)

    @property
    def _takes_gaps(self) -> bool:
        """Whether there may be padding between the tokens of a row: each layer keeps all of them and looks at the mask
        alone."""
        return isinstance(self._cache, DynamicCache) and keeps_all(self._cache)

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
        if (logits := self._by_kernel(ids, positions, mask, cache, rows)) is not None:
            return logits
        given = {"attention_mask": mask, "position_ids": positions, "logits_to_keep": 1}
        given = {name: value for name, value in given.items() if name in self._takes} | self._encoded
        own = {} if cache is None else {str(self._name): cache}
        inputs = self._module.prepare_inputs_for_generation(
            ids, is_first_iteration=mask.shape[1] == ids.shape[1], use_cache=cache is not None, **given, **own
        )
        inputs |= own  # which Phi-3 leaves out of a long prompt
        return self._module(**inputs, return_dict=True).logits[:, -1].float()

    def _by_kernel(
        self, ids: Tensor, positions: Tensor, mask: Tensor, cache: Any, rows: Sequence[GenerationRow]
    ) -> Tensor | None:
        """Compiled code computes one token of each row, or few of one. None where there is none for the model and the
        rows."""
        keys, count = {row.adapter for row in rows}, ids.shape[1]
        fits = len(keys) == 1 and len(rows) <= MOST_ROWS and (len(rows) == 1 or count == 1)
        if not fits or not isinstance(cache, DynamicCache) or not keeps_all(cache):
            return None
        if not self._kernel:
            self._kernel.append(DecodeStep.of(self._module))
        (kernel,) = self._kernel
        if kernel is None or count > kernel.most_tokens:
            return None
        return kernel(ids, positions, mask, cache, keys.pop())

    def _choose(self, logits: Tensor, rows: Sequence[GenerationRow]) -> list[RowTokens]:
        """None for a row whose logits are no numbers; the others do not depend on it."""
        choosing = [number for number, row in enumerate(rows) if row.unread == 0]
        every = list[RowTokens]([[] for _ in rows])
        if not choosing:
            return every
        if len(choosing) < len(rows):
            logits, rows = logits[choosing], [rows[number] for number in choosing]
        highest = logits.amax(-1)
        sound = highest.isfinite()
        if not sound.all():
            logits = logits.where(sound[:, None], 0)
        allowed = _allowed(rows, logits) if any(row.matcher is not None for row in rows) else None
        drawn = self._draw(logits, rows, allowed)
        for number, row, one, value in zip(choosing, rows, drawn, highest.tolist(), strict=True):
            row.problem = None if math.isfinite(value) else NO_NUMBERS.format(value)
            if row.problem is not None:
                every[number] = None
                continue
            before, after = row.ids[row.given_out :], len(row.ids) + 1
            row.ids.append(one.token)
            row.unread += 1
            if row.matcher is not None:
                row.follow(row.matcher, one.token)
            every[number] = [*map(Chosen, before), one, *map(Chosen, row.ids[after:])]
            row.given_out = len(row.ids)
        return every


class EncodedBatch(GenerationBatch):
    """An encoder has positions of its own, so prompts are padded on the right; every answer begins at position 0."""

    @property
    def lets_go(self) -> bool:
        return False

    @torch.inference_mode()
    def begin(self, rows: Sequence[GenerationRow]) -> list[RowTokens]:
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

    def join(self, row: GenerationRow) -> list[Chosen]:
        """Read a prompt, and begin its answer. EvaluationError where the row cannot go on."""
        first = self.read(row, len(row.prompt) + len(row.ids))
        assert first is not None, "all of it is read"
        return first

    @torch.inference_mode()
    def read(self, row: GenerationRow, most: int) -> RowTokens:
        """Read up to `most` more tokens of the prompt. Returns what the answer begins with once the whole prompt is
        read, and None before that. EvaluationError where the row cannot go on."""
        tokens = [*row.prompt, *row.ids]
        if row.cache is None:
            row.cache = self._with_beginning(row)
        begin, row.read = row.read, min(len(tokens), row.read + (most if len(tokens) <= self._alike else len(tokens)))
        ids = torch.tensor([tokens[begin : row.read]], device=self._device)
        mask = ids.new_ones((1, row.read))
        logits = self._forward(ids, mask, row.cache, [row])
        if row.read < len(tokens):
            return None
        cache, row.cache, row.unread = row.cache, None, 0
        self.rows.append(row)
        (first,) = self._choose(logits, [row])
        if first is not None and len(tokens) <= self._alike:
            prompt = slice(0, len(row.prompt))
            layers = [(one.keys[0][:, prompt], one.values[0][:, prompt]) for one in cache.layers]
            self._prefixes.add(row.prompt, row.adapter, layers)
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
        if len(row.prompt) + len(row.ids) > self._alike:
            return cache
        row.reused, layers = self._prefixes.beginning_of(row.prompt, row.adapter)
        for layer, (keys, values) in zip(cache.layers, layers, strict=False):
            layer.update(keys[None], values[None])
        row.read = row.reused
        return cache

    def _store(self, number: int) -> None:
        """What the row has read, for others that begin so."""
        row = self.rows[number]
        if row.problem is None and self._cache is not None and len(row.prompt) + len(row.ids) <= self._alike:
            read = self._mask[number].bool()
            layers = [(one.keys[number][:, read], one.values[number][:, read]) for one in self._cache.layers]
            self._prefixes.add([*row.prompt, *row.ids][: int(read.sum())], row.adapter, layers)

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
    return cache is not None and keeps_all(cache)


def has_decode_step(module: nn.Module) -> bool:
    """Whether compiled code writes few answers of the model, with the adapters that are active."""
    step = DecodeStep.of(module) if can_grow(module) else None
    return step is not None and step.knows(None)


def keeps_all(cache: DynamicCache) -> bool:
    return all(type(layer) is RoomyLayer for layer in cache.layers)


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
