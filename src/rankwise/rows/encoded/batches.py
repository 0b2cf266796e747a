"""Stop 5: Tokens into tensors, and which rows make which step. Next: adapters/wrapper.py.

Rows are padded on the right. A causal model's real tokens cannot see what stands to their right, so padding needs
no attention mask and the id it has does not matter. Which rows a step holds is a function of (seed, step) alone.
Inside a step the rows are sorted by length and portioned so that no portion computes more than a given number of
padded tokens; the step's loss is a sum over all of them, so the portions change nothing but memory and padding.
How the rows of a step are laid out comes in as a value: padded, as here, or several to a row, as in packing.py.

A batch of P pairs of answers holds 2P sequences, chosen and rejected in turn. `Pairs.sums` maps one number for each
target of the batch to (P, 2). Targets that belong to no answer are those of a chosen conversation's prompt, where these
are learned too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rankwise.config.training import TrainingConfig
from rankwise.rows.encoded.row_order import shuffled
from rankwise.rows.text.tokenize import Tokens


@dataclass(frozen=True)
class Pairs:
    counts: tuple[int, ...]
    """Targets of each of the 2P sequences, one behind the other."""
    answers: Tensor
    """(N,) whether it is a token of the answer; False for a token of the prompt."""
    reference: Tensor
    """(P, 2) log-probabilities of both answers before training, in float64 where the device has it; zeros where nothing
    was computed."""
    chosen_tokens: float
    """Targets of the chosen conversations in the whole step, by the number of its pairs."""
    positions: tuple[int, ...]
    """Position of each of these pairs among the rows that were laid out together."""

    def sums(self, values: Tensor, *, prompts: bool = False) -> Tensor:
        """(N,) to (P, 2), in the dtype of the reference: over the targets of answers, or with `prompts` over all."""
        exact = values.to(self.reference.dtype)
        exact = exact if prompts else exact * self.answers
        return torch.stack([part.sum() for part in exact.split(self.counts)]).view(-1, 2)

    def to(self, device: torch.device | str) -> Pairs:
        reference = self.reference.float() if torch.device(device).type == "mps" else self.reference
        return replace(self, answers=self.answers.to(device), reference=reference.to(device))


IGNORED = -100
ROUND_TO = 8


@dataclass(frozen=True)
class Batch:
    """What a model is given and what it should predict.

    A loss is a sum over `count` predictions, so the mean over several batches is sum(losses) / sum(counts).
    """

    inputs: Mapping[str, Tensor]
    """By the names that the model's forward pass gives them: input_ids, attention_mask, position_ids, …"""
    targets: Tensor
    """What to predict, IGNORED where nothing is: (B, T) token ids, (B,) classes, or (B,) values."""
    count: float
    """How many predictions have a loss, or the sum of their weights."""
    tokens: int
    """Without padding."""
    lengths: tuple[int, ...] | None = None
    """Length of each sequence, where a single row holds them one after another (packing.py)."""
    images: int = 0
    """Number of images; 0 where rows are texts."""
    pairs: Pairs | None = None
    """Where rows are pairs of answers: which target belongs to which of them."""
    decoder_tokens: int = 0
    """Number of tokens that a decoder computes beside those of its encoder, padding included."""

    @classmethod
    def of_tokens(
        cls, ids: Tensor, targets: Tensor, tokens: int, positions: Tensor | None = None,
        lengths: tuple[int, ...] | None = None,
    ) -> Batch:  # fmt: skip
        """A batch in which each token may be a target; `positions` (B, T) count anew from 0 in each sequence, and None
        means that each row holds one sequence."""
        inputs = {"input_ids": ids} if positions is None else {"input_ids": ids, "position_ids": positions}
        return cls(inputs, targets, int((targets != IGNORED).sum()), tokens, lengths)

    @property
    def input_ids(self) -> Tensor:
        return self.inputs["input_ids"]

    @property
    def position_ids(self) -> Tensor | None:
        return self.inputs.get("position_ids")

    @property
    def loss_mask(self) -> Tensor:
        """True where there is something to predict."""
        return self.targets != IGNORED

    @property
    def size(self) -> int:
        """Number of tokens that are computed at once, padding included; of images their patches."""
        if self.images:
            return self.tokens
        return next(iter(self.inputs.values())).numel() + self.decoder_tokens

    def to(self, device: torch.device | str) -> Batch:
        moved = {name: value.to(device) for name, value in self.inputs.items()}
        pairs = self.pairs and self.pairs.to(device)
        return replace(self, inputs=moved, targets=self.targets.to(device), pairs=pairs)


def input_length(row: Tokens) -> int:
    """Number of inputs of a row: all tokens but the last, which is only a target."""
    return max(len(row.ids) - 1, 0)


def rounded(length: int) -> int:
    """Round a length up to the width that is computed."""
    return -(-length // ROUND_TO) * ROUND_TO


def padded_length(row: Tokens) -> int:
    return rounded(input_length(row))


def questions(row: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of a row: targets outside the loss mask are IGNORED."""
    ids = np.asarray(row.ids, dtype=np.int64)
    return ids[:-1], np.where(np.asarray(row.loss_mask, dtype=bool)[1:], ids[1:], IGNORED)


def collate(rows: Sequence[Tokens]) -> Batch:
    width = max(padded_length(row) for row in rows)
    inputs = np.zeros((len(rows), width), dtype=np.int64)
    targets = np.full((len(rows), width), IGNORED)
    for index, row in enumerate(rows):
        inputs[index, : input_length(row)], targets[index, : input_length(row)] = questions(row)
    return Batch.of_tokens(torch.from_numpy(inputs), torch.from_numpy(targets), sum(input_length(row) for row in rows))


def real_places(rows: Sequence[Tokens]) -> Tensor:
    """(B, T), true where collated rows have a token and no padding."""
    width = max(padded_length(row) for row in rows)
    return torch.arange(width) < torch.tensor([input_length(row) for row in rows])[:, None]


def portion(rows: Sequence[Tokens], padded_tokens: int) -> list[Batch]:
    return [collate(part) for part in portions_of(rows, padded_tokens)]


def portions_of(
    rows: Sequence[Tokens], padded_tokens: int, width: Callable[[Tokens], int] = padded_length
) -> list[list[Tokens]]:
    """Rows of like length together, longest first, so that what is too large for memory fails at once. `width` is how
    many tokens a row takes in a batch whose longest row it is."""
    portions: list[list[Tokens]] = []
    for row in sorted(rows, key=lambda row: len(row.ids), reverse=True):
        if not portions or width(portions[-1][0]) * (len(portions[-1]) + 1) > padded_tokens:
            portions.append([])
        portions[-1].append(row)
    return portions


Arrange = Callable[[Sequence[Tokens], int], list[Batch]]
"""The rows of a step, and how many padded tokens a micro-batch may hold, to its micro-batches."""


Vary = Callable[[Tokens, int], Tokens]
"""A row, and its position in the whole training, to the row as it is seen there."""


Share = Callable[[Sequence[Tokens]], list[Tokens]]


@dataclass(frozen=True)
class Batches:
    """The rows of each step, without end: one pass after another, each in its own order."""

    rows: Sequence[Tokens]
    batch_size: int
    max_batch_tokens: int
    seed: int
    arrange: Arrange = portion
    vary: Vary | None = None
    order: Callable[[int], int] | None = None
    """The number of the row that is shown at a position; None shows every row once in a pass."""
    in_pass: int | None = None
    """How many positions make a pass; None: as many as there are rows."""
    share: Share | None = None
    """The rows of a step to those that this process computes; None for all of them."""

    @classmethod
    def of(
        cls, rows: Sequence[Tokens], config: TrainingConfig, arrange: Arrange, vary: Vary | None = None,
        order: Callable[[int], int] | None = None, in_pass: int | None = None,
    ) -> Batches:  # fmt: skip
        size, most = config.rows_per_step(in_pass or len(rows)), config.max_batch_tokens
        return cls(rows, size, most, config.seed, arrange, vary, order=order, in_pass=in_pass)

    def at(self, step: int) -> list[Batch]:
        """The micro-batches of step 0, 1, 2, …; none where this process has no share in it."""
        rows = self.rows_of(step)
        if self.share is not None and not (rows := self.share(rows)):
            return []
        return self.arrange(rows, self.max_batch_tokens)

    def rows_of(self, step: int) -> list[Tokens]:
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        rows = [self.rows[self._row(position)] for position in positions]
        if self.vary is None:
            return rows
        return [self.vary(row, position) for row, position in zip(rows, positions, strict=True)]

    def epoch(self, step: int) -> float:
        return step * self.batch_size / (self.in_pass or len(self.rows))

    def _row(self, position: int) -> int:
        if self.order is not None:
            return self.order(position)
        epoch, place = divmod(position, len(self.rows))
        return int(shuffled(len(self.rows), self.seed, epoch)[place])


def chosen_targets(batches: Sequence[Batch]) -> float:
    """The number of targets in the chosen conversations of these batches."""
    return sum(batch.count * batch.pairs.chosen_tokens for batch in batches if batch.pairs is not None)


def with_chosen_tokens(batches: Sequence[Batch], mean: float) -> list[Batch]:
    """Batches that count `mean` chosen tokens, which is the mean over the pairs of all processes in this step."""
    return [
        batch if batch.pairs is None else replace(batch, pairs=replace(batch.pairs, chosen_tokens=mean))
        for batch in batches
    ]
