"""What twenty lines of scikit-learn reach on the same rows: logistic regression on the words of texts.

    words and pairs of words, and 2 to 4 letters inside words -> TF-IDF -> logistic regression (C = 10)

scikit-learn is no dependency: where it is not installed, this is not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

STRENGTH, MOST_STEPS = 10.0, 1000


def can_measure() -> bool:
    return find_spec("sklearn") is not None


def words_predict(texts: Sequence[str], labels: Sequence[int], others: Sequence[str]) -> list[int]:
    """The class of each of the other texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    words: Any = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    letters: Any = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    model: Any = make_pipeline(make_union(words, letters), LogisticRegression(C=STRENGTH, max_iter=MOST_STEPS))
    return [int(one) for one in model.fit(list(texts), list(labels)).predict(list(others))]
