"""The fused backend of classifiers: the blocks of their encoder by kernels, inside the model's own forward pass.

Everything else is as in backend.py: the model itself is asked whether both ways agree before a run relies on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from rankwise.data.batches import Batch
from rankwise.errors import RunError
from rankwise.forward.agreement import Agreement, encoder_agreement
from rankwise.forward.encoders import FusedEncoder, encoder_blocks, has_encoder_kernels
from rankwise.forward.fused import has_weights_that_learn
from rankwise.runs.manifest import BackendName
from rankwise.system.memory import available_memory
from rankwise.text.tokenize import Tokens
from rankwise.training.activation_checkpointing import encoder_blocks_recomputed
from rankwise.training.workload import Workload, prefix_room

COMPARED, LENGTHS = 2, (37, 5, 14)
"""Images, and lengths of texts, that both backends are compared on."""


@dataclass
class FusedBlocks:
    work: Workload
    advice: str
    """What to do where a run that began with this backend cannot go on with it."""
    name: BackendName = "fused"
    tally = None
    _encoder: FusedEncoder | None = field(default=None, init=False)

    def layout(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        return self.work.objective.batches(rows, max_tokens)

    def loss(self, batch: Batch) -> Tensor:
        assert self._encoder is not None, "the backend is active"
        return self._encoder(batch)

    @contextmanager
    def active(self) -> Iterator[None]:
        work = self.work
        if not supports_blocks(work):
            raise RunError(
                f"the run was started with the fused backend, which is not available for this model here; {self.advice}"
            )
        loss = partial(work.objective.loss, work.module)
        free = available_memory()
        self._encoder = FusedEncoder(
            work.module, loss, lowest=work.first_trained_block,
            recomputed=encoder_blocks_recomputed(work, loss, free), room=prefix_room(free),
        )  # fmt: skip
        with self._encoder.active():
            yield


def supports_blocks(work: Workload) -> bool:
    return not work.predicts_tokens and has_encoder_kernels(work.module)


def why_no_blocks(work: Workload) -> str:
    if supports_blocks(work):
        return "the fused kernels of encoders are not compiled"
    if any(has_weights_that_learn(block) for block in encoder_blocks(work.module)):
        return "the fused kernels need frozen weights, but this run trains the model's own weights"
    return "there are no fused kernels for this model and device"


def block_agreement(work: Workload) -> Agreement:
    """On random images, or on texts of several lengths."""
    objective, module = work.objective, work.module
    length = objective.row_length
    lengths = [length] * COMPARED if length else [min(one, work.longest) for one in LENGTHS]
    rows = objective.random_rows(module, lengths, torch.Generator().manual_seed(0))
    (batch,) = objective.batches(rows, len(lengths) * max(lengths))
    return encoder_agreement(module, work.trainable.parameters(), partial(objective.predict, module), batch)
