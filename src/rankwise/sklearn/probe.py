"""A linear model on the vectors of a frozen model, on the words of texts, or on both, chosen by cross-validation.

    vectors    (N, D), each of length 1
    words      TF-IDF of words and pairs of words, and of 2 to 4 letters inside words, each of the two of length 1
    both       the columns of the two side by side

    min over W, b of  sum over rows of loss(W x + b) + |W|^2 / (2 C)        logistic regression, or ridge of numbers

Words decide where they name a class, and vectors where it is a matter of meaning (lab/sklearn_tickets.md). Columns and
C are those with the least loss on rows that were left out.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
from threadpoolctl import threadpool_limits

from rankwise.errors import ModelError, some
from rankwise.rows.encoded.sequences import evenly
from rankwise.sklearn.vectors import Reader, absolute, cached_reader
from rankwise.training.advising import LEAST_PROBABILITY, margin_of
from rankwise.training.validation_classes import word_features

FOLDS, MOST_COMPARED, FILE = 5, 2000, "probe.safetensors"
WORD = re.compile(r"\w\w")
"""What the shortest word has."""
COLUMNS = {"both": "vectors and words", "words": "words", "vectors": "vectors"}


@dataclass(frozen=True)
class LinearKind:
    """What is predicted, and by which linear models."""

    targets: str
    """As classification.targets calls it."""
    linear: Callable[[float], Any]
    predicts: str
    """The linear model's method whose answers are compared."""
    losses: Callable[[Any, Any], Any]
    """The loss of each row, by what is predicted of it and what is right."""
    folds: Callable[[Any], Any]
    """How rows are left out; None where there are too few."""
    strengths = (10.0, 1.0, 100.0)
    """C; the first is taken where there are too few rows to compare."""


def _nats(shares: Any, classes: Any) -> Any:
    right = shares[np.arange(len(classes)), np.unique(classes, return_inverse=True)[1]]
    return -np.log(np.maximum(right, LEAST_PROBABILITY))


def _stratified(classes: Any) -> Any:
    """At most as many folds as leave two classes in every rest."""
    count = min(FOLDS, sorted(Counter(classes.tolist()).values())[-2])
    return StratifiedKFold(count, shuffle=True, random_state=0) if count > 1 else None


CLASSES = LinearKind(
    "classes", lambda strength: LogisticRegression(C=strength, max_iter=1000), "predict_proba", _nats, _stratified
)  # fmt: skip
NUMBERS = LinearKind(
    "numbers", lambda strength: Ridge(alpha=1 / strength), "predict", lambda predicted, right: (predicted - right) ** 2,
    lambda numbers: KFold(FOLDS, shuffle=True, random_state=0) if len(numbers) >= 2 * FOLDS else None,
)  # fmt: skip


def _least_loss(kind: LinearKind, inputs: Any, targets: Any) -> tuple[float, float]:
    """On rows that were left out, with the strength that has it."""
    chosen = np.array(evenly(range(len(targets)), MOST_COMPARED))
    inputs, targets, found = inputs[chosen], targets[chosen], [(np.nan, kind.strengths[0])]
    folds = kind.folds(targets)
    with warnings.catch_warnings():  # of classes that only one fold has
        warnings.simplefilter("ignore")
        for strength in kind.strengths if folds is not None else ():
            linear: Any = kind.linear(strength)
            predicted = cross_val_predict(linear, inputs, targets, cv=folds, method=kind.predicts)
            found.append((float(np.mean(kind.losses(predicted, targets))), strength))
    return min(found[1:] or found)


@dataclass
class LinearProbe:
    reads: type[Reader]
    base: str
    max_length: int
    predicts: str
    columns: str = "both"
    losses: Mapping[str, float] = field(default_factory=dict)
    """The least loss of each choice of columns on rows that were left out."""
    fingerprint: str | None = None
    """That of the base, where its vectors are read."""
    words: Sequence[Any] = ()
    linear: Any = None

    @classmethod
    def over(cls, estimator: Any, **more: Any) -> Self:
        return cls(estimator.reads, absolute(estimator.base), estimator.max_length, estimator.kind.predicts, **more)

    @classmethod
    def fit(cls, estimator: Any, items: Sequence[Any], targets: Any) -> Self:
        wanted, kind, probe = estimator.features, estimator.kind, cls.over(estimator)
        if wanted != "vectors" and estimator.reads.column == "text" and any(map(WORD.search, items)):
            probe.words = [one.fit(items) for one in word_features()]
        names = ["vectors"] if not probe.words else [*COLUMNS] if wanted == "auto" else [wanted]
        inputs = {name: probe.inputs(items, name) for name in names}
        with threadpool_limits(1):  # these problems are no faster with more, and far slower beside other work
            found = {name: _least_loss(kind, one, targets) for name, one in inputs.items()}
            probe.columns = min(found, key=lambda name: found[name][0])
            probe.linear = kind.linear(found[probe.columns][1]).fit(inputs[probe.columns], targets)
        probe.losses = {name: loss for name, (loss, _) in found.items() if loss == loss}
        probe.linear.coef_ = np.ascontiguousarray(probe.linear.coef_)  # as it is read from a file
        if probe.columns != "words":
            probe.fingerprint = probe.reader.model.source.fingerprint
        return probe

    @property
    def advice(self) -> str:
        read = f"The probe reads {COLUMNS[self.columns]}"
        if (loss := self.losses.get(self.columns)) is None:
            return f"{read}; there were too few rows to leave some out."
        others = some(f"{one:.3f} by {COLUMNS[name]}" for name, one in self.losses.items() if name != self.columns)
        return f"{read}; its loss on rows that were left out is {loss:.3f}{f' ({others})' * bool(others)}. " + (
            "An adapter has next to nothing to gain." if loss < margin_of(loss)
            else 'advise(X, y) measures whether method="lora" would do better.'
        )  # fmt: skip

    @property
    def reader(self) -> Reader:
        reader = cached_reader(self.reads, self.base, None, self.max_length)
        if self.fingerprint not in (None, reader.model.source.fingerprint):
            raise ModelError(f"{self.base} has other weights than those that this estimator was fitted on.")
        return reader

    def inputs(self, items: Sequence[Any], columns: str) -> Any:
        counted = [one.transform(items) for one in self.words] if columns != "vectors" else []
        if columns == "words":
            return hstack(counted).tocsr()
        vectors = self.reader.vectors(items).astype(np.float64)
        return hstack([csr_matrix(vectors), *counted]).tocsr() if counted else vectors

    def outputs(self, items: Sequence[Any], names: Sequence[str] | None) -> Any:
        return self.by(self.predicts, items)

    def by(self, method: str, items: Sequence[Any]) -> Any:
        return getattr(self.linear, method)(self.inputs(items, self.columns))

    def write(self, folder: Path) -> dict[str, Any]:
        arrays = {name: np.asarray(getattr(self.linear, name)) for name in ("coef_", "intercept_")}
        for at, one in enumerate(self.words if self.columns != "vectors" else ()):
            terms = "\n".join(sorted(one.vocabulary_, key=one.vocabulary_.__getitem__)).encode()
            arrays |= {f"terms.{at}": np.frombuffer(terms, np.uint8), f"idf.{at}": one.idf_}
        save_file(arrays, folder / FILE)
        return {"columns": self.columns, "losses": self.losses, "fingerprint": self.fingerprint}

    @classmethod
    def opened(cls, folder: Path, record: Mapping[str, Any], estimator: Any) -> Self:
        arrays, words = load_file(folder / FILE), word_features()
        for at, one in enumerate(words if "terms.0" in arrays else ()):
            terms = arrays[f"terms.{at}"].tobytes().decode().split("\n")
            one.vocabulary_, one.idf_ = {term: number for number, term in enumerate(terms)}, arrays[f"idf.{at}"]
        linear = estimator.kind.linear(1.0)
        linear.coef_, linear.intercept_ = arrays["coef_"], arrays["intercept_"]
        linear.classes_ = np.arange(max(2, linear.intercept_.size))
        if estimator.names is not None and len(estimator.names) != len(linear.classes_):
            raise ModelError(
                f"{folder} is damaged: it has {len(estimator.names)} names of {len(linear.classes_)} classes."
            )
        return cls.over(estimator, words=words, linear=linear, **record)
