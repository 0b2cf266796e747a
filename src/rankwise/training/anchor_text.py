"""The text that an anchor holds a model to its base on: one that is given, or one that the base writes itself.

With `code`, every second step takes source code of Python's standard library instead. What the base writes keeps prose
and other languages, and code keeps code (lab/keeping.md). The files are read and never run.
"""

from __future__ import annotations

import sysconfig
from hashlib import sha256
from pathlib import Path
from platform import python_version
from typing import Any

import torch
from torch import Tensor

from rankwise.config.forgetting import BLOCKS, CODE_TEXT, OWN_TEXT, AnchorConfig
from rankwise.config.training import TrainingConfig
from rankwise.errors import DataError
from rankwise.evaluation.text import BETWEEN, Text, Written, cut, read_text
from rankwise.inference.own_text import own_blocks
from rankwise.methods.trainable import Trainable
from rankwise.models.loaded import LoadedModel
from rankwise.runs.manifest import AnchorFacts
from rankwise.runs.records import Callback
from rankwise.training.world import ALONE, World

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


def source_code() -> Written:
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
    return Written(name, content, tuple(sha256(one).hexdigest() for one in every))


def text_of_run(
    config: TrainingConfig, model: LoadedModel, trainable: Trainable, callback: Callback, world: World = ALONE
) -> Text | None:
    """None where the run is not held to its base. What the base writes is written by the first process, for all."""
    if (settings := config.anchor) is None:
        return None

    def written() -> list[Any]:
        with trainable.base():
            text = anchor_text(settings, model, config.steps or 1, callback)
        return [text.blocks.tolist(), text.about, text.sha256, text.origins, text.kinds]

    blocks, about, digest, origins, kinds = world.share(written)
    return Text(torch.tensor(blocks), about, digest, tuple(origins), kinds)


def facts_of(text: Text) -> AnchorFacts:
    return AnchorFacts(text=text.about, sha256=text.sha256, origins=text.origins)
