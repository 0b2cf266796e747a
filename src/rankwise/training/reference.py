"""The log-probabilities of all answers under the model before training, which dpo compares with.

They are computed once, before the first step, by the backend that trains: with a new adapter under the base with the
adapter off, otherwise under the model as training begins. They lie in the cache, by everything that they depend on, and
in the folder of the run until it is finished, so that a run that is resumed goes on with the same numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankwise.data.dealing import deal
from rankwise.data.encoded_cache import our_own
from rankwise.data.preparation import Prepared
from rankwise.errors import RankwiseError, RunError
from rankwise.runs.lineage import Round
from rankwise.runs.manifest import BaseModelFacts, installed_version
from rankwise.runs.records import Callback, ProgressUpdate, StatusMessage
from rankwise.system.cache import cache_folder, forget_old
from rankwise.system.files import write_json
from rankwise.system.processor import processor_name
from rankwise.system.signals import heed
from rankwise.training.pair_backend import PairBackend
from rankwise.training.world import ALONE, World

TOGETHER = 64
"""Pairs between two reports of progress."""


@dataclass(frozen=True)
class Reference:
    """Log-probabilities (N, 2) of the chosen and the rejected answer of each row, in float64; nan where none is
    needed."""

    values: np.ndarray

    def write(self, file: Path) -> None:
        write_json(file, self.facts)

    @property
    def facts(self) -> dict[str, Any]:
        values = [[None if np.isnan(one) else one for one in row] for row in self.values.tolist()]
        return {"values": values, "sha256": self._hash}

    @classmethod
    def read(cls, file: Path, rows: int) -> Reference | None:
        """None where the file is missing, damaged, or of another number of rows."""
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            reference = cls(np.array(stored["values"], np.float64).reshape(-1, 2))
            same = stored["sha256"] == reference._hash and len(reference.values) == rows
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return reference if same else None

    @property
    def _hash(self) -> str:
        return sha256(np.ascontiguousarray(self.values, "<f8").tobytes()).hexdigest()


def reference_of(
    backend: PairBackend, prepared: Prepared, base: BaseModelFacts, lineage: Sequence[Round], max_tokens: int,
    callback: Callback, world: World = ALONE,
) -> Reference:  # fmt: skip
    """For the rows of a training and its validation, from the cache if possible. The model must be as training begins:
    `lineage` are the rounds behind it. Of several processes the first has the cache, and each computes its share."""
    numbers = np.unique(np.concatenate([prepared.trained, prepared.measured]))
    file = cache_folder() / "references" / f"{_key(backend, prepared, numbers, base, lineage, world)}.json"
    known = world.share(lambda: _cached(file, len(prepared.sequences)))
    if known is not None:
        callback(StatusMessage("the reference of these pairs was computed before; it is taken from the cache"))
        return Reference(np.array(known, np.float64).reshape(-1, 2))
    context = nullcontext() if lineage else backend.start()
    lengths = prepared.sequences.starts[numbers + 1] - prepared.sequences.starts[numbers]
    own = numbers[deal(lengths.tolist(), world.size)[world.rank]]
    parts = world.exchange(_computed(backend, context, prepared, own, max_tokens, callback).tolist())
    reference = Reference(np.fmax.reduce([np.array(part, np.float64).reshape(-1, 2) for part in parts]))
    if world.is_first:
        _cache(reference, file, callback)
    return reference


def _cached(file: Path, rows: int) -> list[list[float]] | None:
    if (known := Reference.read(file, rows)) is None:
        return None
    with suppress(OSError):
        os.utime(file)  # mark as used
    return known.values.tolist()


def _cache(reference: Reference, file: Path, callback: Callback) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        reference.write(file)
        forget_old(file.parent)
    except (RankwiseError, OSError) as error:
        callback(StatusMessage(f"the reference could not be cached: {error}"))


def reference_of_run(files: Sequence[Path], rows: int) -> Reference:
    """Of a run that is resumed: the first of these files that is whole."""
    known = next(filter(None, (Reference.read(file, rows) for file in files)), None)
    if known is None:
        raise RunError(f"{files[0]} is missing or damaged, so the run cannot be resumed. Use --restart.")
    return known


def _key(
    backend: PairBackend, prepared: Prepared, numbers: np.ndarray, base: BaseModelFacts, lineage: Sequence[Round],
    world: World,
) -> str:  # fmt: skip
    rows, digest = prepared.sequences, sha256()
    types = rows.token_type_ids
    assert types is not None, "the rows are pairs"
    for column in (rows.starts, rows.ids, rows.loss_mask, types, numbers):
        digest.update(np.ascontiguousarray(column).tobytes())
    parts = [
        digest.hexdigest(), base.fingerprint, base.dtype, base.device, base.quantization, backend.name,
        [one.sha256 for one in lineage], our_own(), installed_version("torch"), processor_name(),
        torch.get_num_threads(), *([world.size] if world.is_several else []),
    ]  # fmt: skip
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _computed(
    backend: PairBackend, context: AbstractContextManager[None], prepared: Prepared, numbers: np.ndarray,
    max_tokens: int, callback: Callback,
) -> np.ndarray:  # fmt: skip
    rows, values = prepared.sequences, np.full((len(prepared.sequences), 2), np.nan)
    lengths = rows.starts[numbers + 1] - rows.starts[numbers]
    order = numbers[np.argsort(-lengths, kind="stable")]
    reading = backend.reading()
    device = next(reading.inner.work.module.parameters()).device
    with reading.active(), torch.no_grad(), context:  # gradients are on while the compiler is tried
        for first in range(0, len(order), TOGETHER):
            part = order[first : first + TOGETHER]
            for batch in reading.layout([rows[int(number)] for number in part], max_tokens):
                assert batch.pairs is not None, "the rows are pairs"
                there = batch.to(device)
                assert there.pairs is not None, "they are where the batch is"
                sums = there.pairs.sums(reading.log_probabilities(there))
                values[part[list(batch.pairs.positions)]] = sums.cpu().numpy()
            heed()
            done = min(first + TOGETHER, len(order))
            callback(ProgressUpdate("Computing the reference", done, len(order), "pairs"))
    if not np.isfinite(values[numbers]).all():
        raise RunError(
            "the log-probability of an answer is not finite before training. The model's weights are damaged, or its "
            "dtype overflows; try --set model.dtype=float32."
        )
    return values
