"""Estimators for scikit-learn over a pretrained model: for pipelines, cross-validation and searches.

TextClassifier, ImageClassifier     classes of texts or of images
TextRegressor                       numbers for texts
TextEmbedder                        the vectors of texts, for any other estimator
"""

from rankwise.errors import RankwiseError
from rankwise.system.extras import need_extra

need_extra("sklearn", "rankwise.sklearn", "sklearn", RankwiseError)

from rankwise.sklearn.estimators import ImageClassifier, TextClassifier, TextEmbedder, TextRegressor  # noqa: E402

__all__ = ["ImageClassifier", "TextClassifier", "TextEmbedder", "TextRegressor"]
