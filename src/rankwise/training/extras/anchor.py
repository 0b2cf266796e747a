"""An anchor to the base: what a step learns from its rows, plus how far it has moved from the base on other text.

    loss = mean over the rows' predictions of -log p  +  weight * mean over the text's tokens of KL(base || tuned)

The base is the same weights with the adapter switched off, so it costs no memory. The text is cut into blocks; which
one a step takes is a function of (seed, step) alone. What the base says of a block never changes, so it is computed
once and stays as long as there is room for it. The fast form computes the block in one row with the step's documents.

The text is one that is given, or one that the base writes itself. With `code`, every second step takes source code of
Python's standard library instead. What the base writes keeps prose and other languages, and code keeps code
(lab/keeping.md). The files are read and never run.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from platform import python_version
from typing import Any

import torch
from torch import Tensor

from rankwise.base.loaded import LoadedModel
from rankwise.config.forgetting import BLOCKS, CODE_TEXT, OWN_TEXT, AnchorConfig
from rankwise.errors import DataError
from rankwise.evaluation.text import BETWEEN, PlainText, Text, cut, read_text
from rankwise.forward.fused import StateCache
from rankwise.inference.own_text import own_blocks
from rankwise.methods.trainable import Trainable
from rankwise.rows.encoded.batches import Batch
from rankwise.rows.encoded.row_order import shuffled
from rankwise.runs.manifest import AnchorFacts
from rankwise.runs.records import Callback
from rankwise.system.memory import available_memory
from rankwise.training.backend import Eager, Fused
from rankwise.training.losses import AnchoredBackend, Backend
from rankwise.training.trainer import Hook
from rankwise.training.training import Extra, Training
from rankwise.training.validation import Validation
from rankwise.training.workload import prefix_room
from rankwise.training.world import ONE_PROCESS, World

STREAM = 0xA17C
"""Sets the order of blocks apart from that of rows, which the same seed decides."""


@dataclass
class BaseOnText:
    """The blocks of a text, and what the base says of each, which is computed once where there is room for it."""

    text: Text
    trainable: Trainable
    backend: AnchoredBackend
    room: int
    """Bytes."""
    world: World = ONE_PROCESS
    _rows: StateCache = field(init=False)

    def __post_init__(self) -> None:
        self._rows = StateCache(self.room)

    def block(self, number: int) -> tuple[Batch, Tensor]:
        """A block alone, in which every token is predicted, and the base's rows for it (AnchoredBackend.base_rows)."""
        ids, length = self.text.blocks[number][None], self.text.length
        batch = Batch.of_tokens(ids[:, :-1], ids[:, 1:], length, torch.arange(length)[None], (length,))
        batch = batch.to(self.trainable.parameters()[0].device)
        return batch, self._rows.of(str(number).encode(), partial(self._base_rows, batch))

    @torch.no_grad()
    def _base_rows(self, batch: Batch) -> Tensor:
        with self.trainable.base():
            return self.backend.base_rows(batch)

    @torch.no_grad()
    def divergence(self, blocks: Sequence[int]) -> float:
        """Measure how far the tuned model, as it is now, diverges from its base, in nats per token of these blocks. The
        blocks are divided over the processes."""
        own = blocks[self.world.rank :: self.world.size]
        apart = sum(self.backend.anchored(None, *self.block(number))[1].item() for number in own)
        (total,) = self.world.sums([apart])
        return total / (len(blocks) * self.text.length)


@dataclass
class Anchor:
    base: BaseOnText
    weight: float
    seed: int
    most: int
    """Tokens that may be computed at once."""

    @property
    def length(self) -> int:
        return self.base.text.length

    def joins(self, batch: Batch) -> bool:
        """Whether the block of a step goes into one row with this batch."""
        base = self.base
        return base.backend.joins and not base.trainable.sets_apart and batch.size + base.text.length <= self.most

    def block(self, step: int) -> int:
        """The number of the block that step 0, 1, 2, … takes. Kinds of text take turns."""
        kinds = self.base.text.kinds
        of_kind, (number, kind) = len(self.base.text.blocks) // kinds, divmod(step, kinds)
        turn, place = divmod(number, of_kind)
        return int(shuffled(of_kind, STREAM, self.seed, turn)[place]) * kinds + kind

    def backward(self, batch: Batch | None, step: int, count: float) -> tuple[float, float]:
        """Add the gradients of a batch's losses divided by `count`, and those of the anchor; return both losses, the
        anchor's without its weight."""
        text, rows = self.base.block(self.block(step))
        loss, apart = self.base.backend.anchored(batch, text, rows)
        (loss / count + self.weight * apart / text.tokens).backward()
        return loss.item() / count, apart.item() / text.tokens


MODULES = (
    "argparse", "ast", "calendar", "codecs", "configparser", "csv", "dataclasses", "difflib", "doctest", "enum",
    "fractions", "heapq", "inspect", "ipaddress", "mailbox", "optparse", "pickle", "random", "shutil", "smtplib",
    "statistics", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "turtle", "typing", "uuid",
)  # fmt: skip
"""Files of the standard library of Python 3.11 to 3.14. One that is missing, as `turtle` is without Tk, is left out."""
BEGINNING = 20_000
"""Characters of each that are read."""


def anchor_text(config: AnchorConfig, model: LoadedModel, steps: int, callback: Callback) -> Text:
    """Where no text is named, the base writes one: `model` must be as it was before it learned. DataError where a text
    has fewer than two blocks."""
    if config.text is not None:
        return cut(read_text(config.text), model, blocks=BLOCKS, length=config.tokens, least=2)
    length, count = min(config.tokens, model.context_length or config.tokens), min(BLOCKS, steps)
    if not config.code:
        own = own_blocks(model, count, length, callback)
        return _text(own, f"{OWN_TEXT}: {len(own)} blocks of {length} tokens", (), 1)
    written = source_code()
    code = cut(written, model, blocks=-(-count // 2), length=length, least=2)
    pairs = zip(own_blocks(model, len(code.blocks), length, callback), code.blocks, strict=False)
    blocks = torch.stack([block for pair in pairs for block in pair])
    about = f"{OWN_TEXT}, and {written.name}: {len(blocks)} blocks of {length} tokens"
    return _text(blocks, about, written.origins, 2)


def _text(blocks: Tensor, about: str, origins: tuple[str, ...], kinds: int) -> Text:
    return Text(blocks, about, sha256(blocks.numpy().tobytes()).hexdigest(), origins, kinds)


def source_code() -> PlainText:
    folder = Path(sysconfig.get_path("stdlib"))
    files = [file for name in MODULES if (file := folder / f"{name}.py").is_file()]
    if not files:
        raise DataError(
            f"{folder}: has no source files of Python's standard library, so training.anchor.code has no text. Name a "
            "text that contains code instead (training.anchor.text)."
        )
    name = f"{CODE_TEXT} (Python {python_version()}, the beginnings of {len(files)} files)"
    every = [file.read_bytes() for file in files]
    content = BETWEEN.join(one.decode("utf-8", errors="replace")[:BEGINNING] for one in every)
    return PlainText(name, content, tuple(sha256(one).hexdigest() for one in every))


class HeldToBase(Extra):
    """The training is held to its base on a text. What the base writes is written by the first process, for all."""

    def __init__(self, config: AnchorConfig) -> None:
        self.config = config

    def attached(self, training: Training) -> None:
        def written() -> list[Any]:
            with training.trainable.base():
                text = anchor_text(self.config, training.model, training.steps, training.session.callback)
            return [text.blocks.tolist(), text.about, text.sha256, text.origins, text.kinds]

        blocks, about, digest, origins, kinds = training.session.world.share(written)
        self.text = Text(torch.tensor(blocks), about, digest, tuple(origins), kinds)
        self.about = f"held to its base on {about}"

    def hooks(self, training: Training, backend: Backend, validation: Validation) -> Sequence[Hook]:
        assert isinstance(backend, Eager | Fused), "other objectives refuse an anchor"
        room, world = prefix_room(available_memory()), training.session.world
        base = BaseOnText(self.text, training.trainable, backend, room, world)
        training.anchor = Anchor(base, self.config.weight, training.config.seed, training.config.max_batch_tokens)
        return ()

    def facts(self) -> dict[str, Any]:
        return {"anchor": AnchorFacts(text=self.text.about, sha256=self.text.sha256, origins=self.text.origins)}
