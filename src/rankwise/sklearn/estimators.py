"""The estimators: what scikit-learn calls, over a probe or a tuned model."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    RegressorMixin,
    TransformerMixin,
    clone,
)
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_array,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from rankwise import __version__
from rankwise.config.base import shown
from rankwise.errors import ConfigError, DataError, ModelError, RankwiseError, joined_problems
from rankwise.rows.forms.labels import Labels
from rankwise.runs.advice import Advice
from rankwise.sklearn.probe import CLASSES, COLUMNS, NUMBERS, LinearKind, LinearProbe
from rankwise.sklearn.tuned import LOG, Tuned, advise
from rankwise.sklearn.vectors import ImageReader, Reader, absolute, cached_reader, listed, open_reader
from rankwise.system.files import published, write_json
from rankwise.system.foreign_json import read_json

METHODS: dict[str, type[LinearProbe | Tuned]] = {"probe": LinearProbe, "lora": Tuned}
FILE, FORMAT = "estimator.json", 1
SHORTEST = 3
"""Tokens of a text: its begin, its end, and one between them."""
LARGEST = 1e18
LEARNED = ("classes_", "n_features_in_", "feature_names_in_")


class _Reading(BaseEstimator):
    """Reads a column of items."""

    reads: ClassVar[type[Reader]] = Reader

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array, tags.input_tags.one_d_array = True, False, True
        return tags

    def _items(self, X: Any, *, reset: bool) -> list[Any]:
        """The items of X. It counts as one feature; a table's column keeps its name."""
        length = self.get_params().get("max_length", SHORTEST)
        if not isinstance(length, Integral) or length < SHORTEST:
            raise ConfigError([f"max_length is {shown(length)}; it must be a whole number, at least {SHORTEST}."])
        items = listed(X)
        column: Any = X if hasattr(X, "columns") else np.empty((len(items), 1), dtype=object)
        validate_data(self, column, skip_check_array=True, reset=reset)
        return self.reads.items(items)


class _Estimator(_Reading):
    kind: ClassVar[LinearKind] = CLASSES
    dtype: ClassVar[Any] = None
    """The number format of labels; None where it is any."""

    def __init__(
        self, base: str = "minilm", *, method: str = "probe", features: str = "auto", max_length: int = 256,
        random_state: int = 0, folder: str | None = None, settings: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.base, self.method, self.features, self.max_length = base, method, features, max_length
        self.random_state, self.folder, self.settings = random_state, folder, settings

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on items and their labels. `advice_` says how well it works and what may work better."""
        allowed = {"method": [*METHODS], "features": ["auto", *COLUMNS]}
        wrong = [f"{name} is {shown(value)}; it may be {' or '.join(allowed[name])}." for name in allowed
                 if (value := getattr(self, name)) not in allowed[name]]  # fmt: skip
        if wrong:
            raise ConfigError(wrong)
        self.fitted_ = METHODS[self.method].fit(self, *self._rows(X, y))
        self.advice_ = self.fitted_.advice
        LOG.info(self.advice_)
        return self

    def advise(self, X: Any, y: Any) -> Advice:
        """Measure on held-out rows whether an adapter would beat the probe (docs/advise.md)."""
        asking: Any = clone(self)
        advice = advise(asking, *asking._rows(X, y))
        self.advice_ = advice.text
        LOG.info(self.advice_)
        return advice

    def _rows(self, X: Any, y: Any) -> tuple[list[Any], Any]:
        items = self._items(X, reset=True)
        if y is None:
            raise DataError(f"{type(self).__name__} requires y to be passed, but the target y is None.")
        self._check_labels(np.asarray(y, dtype=object).ravel().tolist())
        kind: Any = self.dtype
        y = column_or_1d(check_array(y, ensure_2d=False, dtype=kind, input_name="y"), warn=True)
        check_consistent_length(items, y)
        return items, self._targets(y)

    def _check_labels(self, y: list[Any]) -> None:
        """Before NumPy gives them one type. DataError where a label is missing, or is a text and another none."""
        missing = [f"item {at} of y is {shown(one)}, so this row has no label. Leave it out of X and y."
                   for at, one in enumerate(y) if one is None or str(one != one) in ("True", "<NA>")]  # fmt: skip
        if missing:
            raise DataError(joined_problems(missing))
        if self.dtype is not None:
            return
        texts = [isinstance(one, str) for one in y]
        if len(set(texts)) > 1:
            other, text = (shown(y[texts.index(kind)]) for kind in (False, True))
            raise DataError(f"y has the labels {other} and {text}, which is a text. Write all as texts, or none.")
        if all(texts):
            places = {one: f"item {at} of y" for at, one in reversed([*enumerate(y)])}
            for remark in Labels(Counter(y), places, {one: [place] for one, place in places.items()}).remarks():
                LOG.warning(remark)

    def _targets(self, y: Any) -> Any:
        """What the linear models learn: numbers of classes, or numbers."""
        check_classification_targets(y)
        self.classes_, targets = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(f"y has one class, {shown(self.classes_[0].item())}, and at least 2 classes are needed.")
        return targets

    @property
    def names(self) -> list[str] | None:
        """What rows to train on call the classes; None where numbers are predicted."""
        return [str(one) for one in self.classes_] if hasattr(self, "classes_") else None

    def _outputs(self, X: Any) -> Any:
        check_is_fitted(self)
        return self.fitted_.outputs(self._items(X, reset=False), self.names)

    def save(self, folder: str | Path) -> None:
        """Save the fitted estimator to a new folder, as JSON and safetensors."""
        check_is_fitted(self)
        learned = {name: vars(self)[name] for name in LEARNED if name in vars(self)}
        with published(Path(folder)) as temporary:
            write_json(temporary / FILE, {
                "format": FORMAT, "rankwise": __version__, "estimator": type(self).__name__,
                "parameters": {name: value.item() if isinstance(value, np.generic) else value
                               for name, value in self.get_params().items()},
                "learned": {name: [getattr(one, "dtype", np.dtype(int)).str, np.asarray(one).tolist()]
                            for name, one in learned.items()},
                "fitted": self.fitted_.write(temporary),
            })  # fmt: skip

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Load an estimator that `save` wrote. Nothing in the folder is executed."""
        record = read_json(Path(folder) / FILE)
        if (record.get("estimator"), record.get("format")) != (cls.__name__, FORMAT):
            raise ModelError(f"{folder} holds {shown(record.get('estimator'))}, and {cls.__name__} cannot load it.")
        try:
            estimator = cls(**record["parameters"])
            for name in record["learned"].keys() & set(LEARNED):
                kind, values = record["learned"][name]
                found = np.array(values, dtype=kind)
                setattr(estimator, name, found if found.ndim else found.item())
            estimator.fitted_ = METHODS[estimator.method].opened(Path(folder), record["fitted"], estimator)
            estimator.advice_ = estimator.fitted_.advice
        except RankwiseError:
            raise
        except (ArithmeticError, AttributeError, LookupError, OSError, SafetensorError, TypeError, ValueError) as error:
            raise ModelError(f"{folder} is damaged, or was written by another version: {error}") from None
        return estimator


class _Classifier(ClassifierMixin, _Estimator):
    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities for each item, with one column for each of `classes_`."""
        return self._outputs(X)

    def predict(self, X: Any) -> Any:
        best = self._outputs(X).argmax(1)
        return self.classes_[best]

    @available_if(lambda self: METHODS[self.method] is LinearProbe)
    def decision_function(self, X: Any) -> Any:
        check_is_fitted(self)
        probe: Any = self.fitted_
        return probe.by("decision_function", self._items(X, reset=False))


class TextClassifier(_Classifier):
    """Text classifier: predicts a class for each text. `method="probe"` fits logistic regression on the frozen `base`
    model's embeddings and on words, in seconds. `method="lora"` trains an adapter, with `settings` as for
    `rankwise.train`; its run is kept in `folder` if one is given. Texts longer than `max_length` tokens are truncated.
    """


class TextRegressor(RegressorMixin, _Estimator):
    """Predicts a number for each text. Like `TextClassifier`, with ridge regression as the probe."""

    kind, dtype = NUMBERS, np.float64

    def _targets(self, y: Any) -> Any:
        if (large := np.flatnonzero(np.abs(y) > LARGEST)).size:
            raise DataError(
                f"item {large[0]} of y is {shown(y[large[0]].item())}; numbers beyond {LARGEST:g} are not learned, "
                "since their squares overflow. Divide them, or learn their logarithms."
            )
        return y

    def predict(self, X: Any) -> Any:
        return self._outputs(X)


class ImageClassifier(_Classifier):
    """Image classifier: predicts a class for each image (a path, the bytes of a file, a Pillow image, or a uint8
    array). Otherwise like `TextClassifier`, without word features."""

    reads, features, max_length = ImageReader, "vectors", 0

    def __init__(
        self, base: str = "dinov2-small", *, method: str = "probe", random_state: int = 0, folder: str | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.base, self.method, self.random_state = base, method, random_state
        self.folder, self.settings = folder, settings


class TextEmbedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _Reading):
    """Text embeddings of length 1, from a base model, or from a finished `run` on its own base. Texts longer than
    `max_length` tokens are truncated."""

    def __init__(self, base: str = "minilm", *, run: str | None = None, max_length: int = 256) -> None:
        self.base, self.run, self.max_length = base, run, max_length

    @cached_property
    def _reader(self) -> Reader:
        if self.run is not None:  # which may be trained again under its name
            return open_reader(self.reads, None, str(self.run), self.max_length)
        return cached_reader(self.reads, absolute(self.base), None, self.max_length)

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_reader"}

    def fit(self, X: Any, y: Any = None) -> Self:
        """Load the model. Nothing is trained."""
        vars(self).pop("_reader", None)
        self._n_features_out = self._reader.vectors(self._items(X, reset=True)[:1]).shape[1]
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        check_is_fitted(self)
        return self._reader.vectors(self._items(X, reset=False))
