"""The text that an anchor holds a model to its base on: one that is given, or by default two kinds in equal parts.

    text that the base writes itself (inference/own_text.py)    what it knows, in the proportions in which it knows it
    source code of Python's standard library                    code and the prose of its comments, by many people

What the base writes keeps ordinary prose and other languages; code, which it seldom writes by itself, is kept by code
(measured in lab/keeping.md). Nothing is downloaded, and the code is read, never run.
"""

from __future__ import annotations

import sysconfig
from hashlib import sha256
from pathlib import Path
from platform import python_version
from typing import Any

import torch

from rankwise.config.anchor import BLOCKS, CODE_TEXT, OWN_TEXT, AnchorConfig
from rankwise.config.training import TrainingConfig
from rankwise.evaluation.text import BETWEEN, Text, Written, cut, read_text
from rankwise.inference.own_text import own_blocks
from rankwise.methods.trainable import Trainable
from rankwise.models.loaded import LoadedModel
from rankwise.runs.manifest import AnchorFacts
from rankwise.runs.records import Callback
from rankwise.system.files import sha256_of
from rankwise.training.world import ALONE, World

MODULES = (
    "argparse", "ast", "calendar", "codecs", "configparser", "csv", "dataclasses", "difflib", "doctest", "enum",
    "fractions", "heapq", "inspect", "ipaddress", "mailbox", "optparse", "pickle", "random", "shutil", "smtplib",
    "statistics", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "turtle", "typing", "uuid",
)  # fmt: skip
"""Files of the standard library of Python 3.11 to 3.14. One that is missing, as `turtle` is without Tk, is left out."""
BEGINNING = 20_000
"""Characters of each that are read, which together are enough for BLOCKS."""


def anchor_text(config: AnchorConfig, model: LoadedModel, steps: int, callback: Callback) -> Text:
    """Where no text is named, the base writes half of it: `model` must be as it was before it learned. A Python without
    its source files leaves the base's part alone. DataError where a text has fewer than two blocks."""
    if config.text is not None:
        return cut(read_text(config.text), model, blocks=BLOCKS, length=config.tokens, least=2)
    length = min(config.tokens, model.context_length or config.tokens)
    blocks = own_blocks(model, -(-min(BLOCKS, steps) // 2), length, callback)
    about, code = OWN_TEXT, source_code()
    if code is not None:
        pairs = zip(blocks, cut(code, model, blocks=len(blocks), length=length, least=2).blocks, strict=False)
        blocks = torch.stack([block for pair in pairs for block in pair])
        about = f"{OWN_TEXT}, and {code.name}"
    about = f"{about}: {len(blocks)} blocks of {length} tokens"
    digest = sha256(blocks.numpy().tobytes()).hexdigest()
    return Text(blocks, about, digest, *(((), 1) if code is None else (code.origins, 2)))


def source_code() -> Written | None:
    """None where this Python has no source files."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = [file for name in MODULES if (file := folder / f"{name}.py").is_file()]
    if not files:
        return None
    name = f"{CODE_TEXT} (Python {python_version()}, the beginnings of {len(files)} files)"
    content = BETWEEN.join(file.read_text(encoding="utf-8")[:BEGINNING] for file in files)
    return Written(name, content, tuple(sha256_of(file) for file in files))


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
