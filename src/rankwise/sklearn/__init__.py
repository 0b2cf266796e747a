"""scikit-learn estimators built on pretrained models, for pipelines, cross-validation and searches.

TextClassifier, ImageClassifier     predict classes for texts or images
TextRegressor                       predicts numbers for texts
TextEmbedder                        text embeddings, for any other estimator
"""

from rankwise.errors import RankwiseError
from rankwise.system.extras import need_extra

need_extra("sklearn", "rankwise.sklearn", "sklearn", RankwiseError)

from rankwise.sklearn.estimators import ImageClassifier, TextClassifier, TextEmbedder, TextRegressor  # noqa: E402

__all__ = ["ImageClassifier", "TextClassifier", "TextEmbedder", "TextRegressor"]
