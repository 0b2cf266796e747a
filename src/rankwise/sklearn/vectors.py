"""The items that an estimator is given, and the vector that a frozen model has for each of them.

    texts     the mean of the hidden states of all tokens, or what a sentence-transformers model says; a decoder's last
              state
    images    what the head of a classifier reads

Each vector has mean 0 and length 1. Each item is read alone, by one thread, so that its vector is the same to the bit
whatever stands beside it and however many cores there are. It is remembered, so the folds of a cross-validation read
each item once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from rankwise.base.inspection import nature_of, pooling_of
from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.base.pooling import pooled
from rankwise.base.preprocessing import processing_in
from rankwise.base.sources import find
from rankwise.config.base import shown
from rankwise.config.classification import ClassificationConfig
from rankwise.config.models import BOTH, DECODER, ModelConfig
from rankwise.errors import DataError, joined_problems
from rankwise.evaluation.feature_forgetting import features_of
from rankwise.inference.items import images_given
from rankwise.inference.tuned_model import load_tuned
from rankwise.methods.artifact import open_artifact
from rankwise.objectives.objective import Facts
from rankwise.objectives.registry import objective_named
from rankwise.objectives.text_classification.loss import padded
from rankwise.objectives.text_classification.rows import encode_texts
from rankwise.rows.text.text_encoding import is_unicode
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.records import silent
from rankwise.runs.row_facts import TargetFacts

MOST_KNOWN = 50_000
NO_COLUMN = (str, bytes, Path, Mapping, Set)


def listed(X: Any) -> list[Any]:
    """The items of a list, of an array (N,) or (N, 1), of a Series, or of a table with one column."""
    values = X.to_numpy() if hasattr(X, "columns") and hasattr(X, "to_numpy") else X
    if isinstance(values, NO_COLUMN) or hasattr(values, "tocsr") or not hasattr(values, "__len__"):
        raise DataError(f"X is {shown(values)}, a {type(values).__name__}. Give a list, an array or a Series of items.")
    shape = getattr(values, "shape", (len(values),))
    if len(shape) == 2 and shape[1] != 1:
        raise DataError(f"X has the shape {tuple(shape)}, and one column is read. Choose one, or join their texts.")
    items = [one[0] for one in values] if len(shape) == 2 else list(values)
    if not items:
        raise DataError("X has no items: 0 sample(s), and at least one is required.")
    return items


class Reader:
    """A loaded model that reads texts."""

    column = "text"
    """The name of an item in rows to train on."""

    def __init__(self, model: LoadedModel, objective: Any, max_length: int) -> None:
        self.model, self.objective, self._known = model, objective, dict[bytes, NDArray[np.float32]]()
        self._lock = Lock()
        self.max_length = min(max_length, model.context_length or max_length)
        pooling, _ = pooling_of(model.source.folder, ClassificationConfig())
        self.nature = nature_of(model.source.config)
        last = self.nature == DECODER and pooling == "own"
        self.pooling: Any = "cls" if last else "mean" if pooling == "own" else pooling
        self.first_read = -1 if last else 0

    @staticmethod
    def objective_over(config: ModelConfig) -> Any:
        return objective_named("sequence-classification", Facts(TargetFacts()))

    @staticmethod
    def items(values: Sequence[Any]) -> list[Any]:
        """DataError names the items that are no texts."""
        problems = [f"item {at} of X is {shown(one)}; a text is expected. Write one, or leave the item out."
                    for at, one in enumerate(values) if not isinstance(one, str) or not is_unicode(one)]  # fmt: skip
        if problems:
            raise DataError(joined_problems(problems))
        return list(map(str, values))

    def row(self, item: Any) -> Tokens:
        with self._lock:  # a tokenizer that cuts is changed for as long as it does
            return encode_texts(self.model.tokenizer, [(item, "")], self.max_length)[0]

    def read(self, item: Any) -> torch.Tensor:
        module: Any = self.model.module
        body = module.get_encoder() if self.nature == BOTH else getattr(module, module.base_model_prefix)
        inputs = {name: value.to(self.model.precision.device) for name, value in padded([self.row(item)]).items()}
        states = body(**inputs).last_hidden_state[:, self.first_read :]
        return pooled(states, torch.ones_like(states[..., 0]), self.pooling)[0]

    def vectors(self, items: Sequence[Any]) -> NDArray[np.float32]:
        return np.stack(self._each(items, self._vector))

    def outputs(self, items: Sequence[Any]) -> NDArray[np.float64]:
        """What a tuned model predicts: probabilities (N, C), or numbers (N, 1)."""
        return np.concatenate(self._each(items, self._output))

    def _each(self, items: Sequence[Any], compute: Callable[[Any], Any]) -> list[Any]:
        count = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(count, initializer=partial(torch.set_num_threads, 1)) as pool:
                return list(pool.map(compute, items))
        finally:
            torch.set_num_threads(count)

    @torch.no_grad()
    def _vector(self, item: Any) -> NDArray[np.float32]:
        key = sha256(item if isinstance(item, bytes) else item.encode()).digest()
        if key not in self._known:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            found = self.read(item).float().cpu()
            return self._known.setdefault(
                key, (F.layer_norm(found, found.shape, eps=1e-12) / found.numel() ** 0.5).numpy()
            )
        return self._known[key]

    def _output(self, item: Any) -> Any:
        return self.objective.predicting.outputs_for(self.model.module, [self.row(item)])


class ImageReader(Reader):
    """A loaded model that reads images, each the bytes of a file."""

    column = "image"

    @staticmethod
    def objective_over(config: ModelConfig) -> Any:
        facts = Facts(TargetFacts(), processing_in(find(config, silent).folder))
        return objective_named("image-classification", facts)

    @staticmethod
    def items(values: Sequence[Any]) -> list[Any]:
        return [one.image.source for one in images_given(None, values) if one.image is not None]

    def row(self, item: Any) -> Tokens:
        inputs = self.objective.predicting.inputs
        (outcome,) = inputs.encoded(self.model, [inputs.example_of(item, "an image of X")], None)
        if outcome.problem is not None:
            raise DataError(outcome.problem)
        return outcome.sequences[0]

    def read(self, item: Any) -> torch.Tensor:
        pixels = np.asarray(self.row(item).image)[None]
        with self._lock:  # it listens to the model
            return torch.from_numpy(features_of(self.model.module, self.objective.loss)(pixels))[0]


def absolute(base: str) -> str:
    """A folder by its whole path, so that it is the same one in another working folder."""
    return str(Path(base).absolute()) if Path(base).exists() else str(base)


def open_reader(kind: type[Reader], base: str | None, run: str | None, max_length: int) -> Reader:
    """Over a frozen base in float32, or over what a run, or an adapter's folder, made of it."""
    if run is not None:
        artifact = open_artifact(run, base_model=base)
        config = artifact.model
        tuned = load_tuned(artifact, config=config.model_copy(update={"dtype": "float32"}))
        return kind(tuned.model, tuned.objective, max_length)
    config = ModelConfig(name=str(base), dtype="float32")
    objective = kind.objective_over(config)
    return kind(load(config, silent, objective.kind), objective, max_length)


cached_reader = lru_cache(maxsize=2)(open_reader)
