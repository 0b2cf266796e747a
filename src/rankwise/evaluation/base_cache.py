"""A base's side of an evaluation, kept: runs of one base are all held against it, and it does the same each time.

The key is everything that the numbers depend on: the weights by their fingerprint, the format that they are held in,
the tokenizer, the template and the tokens that end an answer, each item as ids, the task's settings, our own code, the
libraries that compute and score, and the processor with its threads. An entry that was damaged does not verify, and the
base is asked anew. What nobody has asked for in thirty days is removed when something new is kept.
"""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from rankwise.data.encoded_cache import our_own
from rankwise.errors import RankwiseError
from rankwise.evaluation.task import Task
from rankwise.models.loaded import LoadedModel
from rankwise.runs.evaluations import Side
from rankwise.runs.manifest import installed_version, processor_name
from rankwise.runs.records import Callback, StatusMessage
from rankwise.system.cache import cache_folder, forget_old
from rankwise.system.files import write_json

COUNTED_BY = ("torch", "sacrebleu", "rouge-score")
"""Beside what reads and renders, which our_own holds."""


def side_of_base(task: Task, model: LoadedModel, fingerprint: str | None, who: str, callback: Callback) -> Side:
    """`fingerprint` is that of the weights that `model` has now; without one nothing is known, and nothing kept."""
    identity = task.identity
    if fingerprint is None or identity is None:
        return task.side(model, who, callback)
    file = cache_folder() / "sides" / f"{_key(identity, model, fingerprint)}.json"
    known = _recalled(file)
    if known is not None:
        callback(StatusMessage(f"{who} was asked all of {task.name} before; what it scored is taken from the cache"))
        return known
    made = task.side(model, who, callback)
    _keep(file, made, callback)
    return made


def _key(identity: str, model: LoadedModel, fingerprint: str) -> str:
    facts, template = model.facts, model.template
    parts = [
        identity, fingerprint, facts.dtype, facts.device, model.tokenizer.identity, template.identity,
        list(template.end_ids), our_own(), *map(installed_version, COUNTED_BY), processor_name(),
        torch.get_num_threads(),
    ]  # fmt: skip
    return _digest(parts)


def _digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _recalled(file: Path) -> Side | None:
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        if _digest(held["side"]) != held["sha256"]:
            return None
        os.utime(file)  # asked for
        return Side(**held["side"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, RankwiseError):  # missing, or damaged
        return None


def _keep(file: Path, made: Side, callback: Callback) -> None:
    """A cache that cannot be written costs nothing but the time to ask again."""
    side = made.model_dump(mode="json")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"sha256": _digest(side), "side": side})
        forget_old(file.parent)
    except (RankwiseError, OSError) as error:
        callback(StatusMessage(f"what the base scored is not kept for the next time: {error}"))
