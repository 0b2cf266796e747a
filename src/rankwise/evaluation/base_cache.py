"""Cached scores of base models: all runs of one base are compared with the same scores.

The key covers everything that the numbers depend on: the fingerprint of the weights and their dtype, the tokenizer, the
chat template and the tokens that end an answer, each request as ids, the task's settings, rankwise's own code, the
libraries that compute and score, and the CPU with its number of threads. A damaged entry fails its checksum, and the
base is evaluated again. Entries unused for thirty days are removed when a new one is written.
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
from rankwise.runs.evaluations import ModelScores
from rankwise.runs.manifest import installed_version
from rankwise.runs.records import Callback, StatusMessage
from rankwise.system.cache import cache_folder, forget_old
from rankwise.system.files import write_json
from rankwise.system.processor import processor_name

COUNTED_BY = ("torch", "sacrebleu", "rouge-score")
"""Libraries whose versions are part of the key, beside those that `our_own` covers."""


def base_scores(task: Task, model: LoadedModel, fingerprint: str | None, who: str, callback: Callback) -> ModelScores:
    """Return the base's scores, from the cache if possible. Without a `fingerprint` of the current weights, nothing is
    cached."""
    identity = task.identity
    if fingerprint is None or identity is None:
        return task.score(model, who, callback)
    file = cache_folder() / "scores" / f"{_key(identity, model, fingerprint)}.json"
    known = _recalled(file)
    if known is not None:
        callback(StatusMessage(f"{who} was evaluated on {task.name} before; its scores are taken from the cache"))
        return known
    scores = task.score(model, who, callback)
    _store(file, scores, callback)
    return scores


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


def _recalled(file: Path) -> ModelScores | None:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        if _digest(stored["scores"]) != stored["sha256"]:
            return None
        os.utime(file)  # mark as used
        return ModelScores(**stored["scores"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, RankwiseError):  # missing or damaged
        return None


def _store(file: Path, scores: ModelScores, callback: Callback) -> None:
    """Write an entry. A failure is only reported, since it merely costs the time of another evaluation."""
    content = scores.model_dump(mode="json")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"sha256": _digest(content), "scores": content})
        forget_old(file.parent)
    except (RankwiseError, OSError) as error:
        callback(StatusMessage(f"the scores of the base model could not be cached: {error}"))
