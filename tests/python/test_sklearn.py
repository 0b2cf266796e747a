"""The estimators in the hands of scikit-learn: its own checks, its tools, and what is saved."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import validate_data

import rankwise
from kit.classifiers import WORDS, encoder_folder, labelled
from kit.vision_models import dark_and_light, save_folder
from rankwise.errors import RankwiseError
from rankwise.sklearn import ImageClassifier, TextClassifier, TextEmbedder, TextRegressor
from rankwise.sklearn.vectors import cached_reader

ROWS = labelled(36)
TEXTS, LABELS = [row["text"] for row in ROWS], [row["label"] for row in ROWS]
FEW = {"steps": 2, "held_out": 6, "rank": 2, "backend": "eager"}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """A folder with a tiny base, `bert`, in which the checks of scikit-learn run too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("sklearn"))
        encoder_folder(Path("bert"))
        yield


class FromNumbers:
    """An estimator of texts that is given numbers, as scikit-learn's checks do, and writes each row as a text."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.one_d_array, tags.input_tags.two_d_array = False, False, True
        return tags

    def _items(self, X, *, reset):
        rows = validate_data(self, X, reset=reset, dtype=np.float64)
        return [" ".join(_words(row)) for row in rows]


def _words(row):
    """A word for each column and tenth, so that near numbers share words."""
    for column, value in enumerate(row):
        for step in range(-20, 21):
            if value > step / 4:
                yield f"{WORDS[column % len(WORDS)]}{column}_{step + 20}"


class NumberClassifier(FromNumbers, TextClassifier):
    pass


class NumberRegressor(FromNumbers, TextRegressor):
    pass


class NumberEmbedder(FromNumbers, TextEmbedder):
    pass


DO_NOT_APPLY = {
    "check_transformer_preserve_dtypes": "vectors are float32, and texts have no number format to preserve",
}
"""Checks that fail, and why they do not apply."""


@parametrize_with_checks(
    [NumberClassifier("bert", features="words"), NumberRegressor("bert", features="words"), NumberEmbedder("bert")],
    expected_failed_checks=lambda estimator: DO_NOT_APPLY,
)
def test_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def fitted(home):
    return TextClassifier("bert").fit(TEXTS, LABELS)


def test_every_way_to_hold_a_column_of_texts_is_read_alike(fitted):
    pandas = pytest.importorskip("pandas")
    expected = fitted.predict_proba(TEXTS)
    table = pandas.DataFrame({"body": TEXTS})
    column = np.array(TEXTS, dtype=object)[:, None]
    for given in (np.array(TEXTS), np.array(TEXTS, dtype=object), column, table.body, table.body.astype("string")):
        assert np.array_equal(fitted.predict_proba(given), expected)
    named = clone(fitted).fit(table, LABELS)
    assert list(named.feature_names_in_) == ["body"] and named.n_features_in_ == fitted.n_features_in_ == 1
    assert np.array_equal(named.predict_proba(table), expected)
    with pytest.raises(ValueError, match="feature names"):
        named.predict(table.rename(columns={"body": "title"}))


@pytest.mark.parametrize("method", ["predict_proba", "decision_function"])
def test_a_text_has_the_same_answer_to_the_bit_whatever_stands_beside_it(fitted, method):
    ask, order = getattr(fitted, method), np.random.default_rng(0).permutation(len(TEXTS))
    whole = ask(TEXTS)
    assert np.array_equal(ask([TEXTS[at] for at in order]), whole[order])
    fitted.fitted_.reader._known.clear()
    assert np.array_equal(ask(TEXTS[5:7]), whole[5:7])


def test_long_texts_are_cut_though_several_threads_read_at_once():
    before = torch.get_num_threads(), sys.getswitchinterval()
    texts = [f"the film {'plot ' * (at % 3 + 60)}{WORDS[at % 12]}" for at in range(400)] + ["a film"] * 2
    torch.set_num_threads(4)
    sys.setswitchinterval(1e-6)
    try:
        vectors = TextEmbedder("bert", max_length=8).fit_transform(texts)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before[0])
        sys.setswitchinterval(before[1])
    assert np.array_equal(np.unique(vectors[:400], axis=0), vectors[:1]) and (vectors[-1] != vectors[0]).any()


def test_a_run_has_vectors_of_its_own_and_its_newest_when_it_is_trained_again(tmp_path, monkeypatch):
    base = encoder_folder(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    made = []
    for rate in (0.0001, 0.1):
        settings = FEW | {"model": str(base), "learning_rate": rate, "restart": True, "progress": False}
        rankwise.train(data=ROWS, run="films", **settings)
        made.append(deepcopy(TextEmbedder(run="films").fit(TEXTS)).transform(TEXTS))
    frozen = TextEmbedder("base").fit_transform(TEXTS)
    assert np.allclose(made[0], frozen, atol=0.01) and not np.allclose(made[1], frozen, atol=0.01)
    np.testing.assert_allclose(np.linalg.norm(frozen, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("labels", [["good", "bad"], [7, -3], [True, False], [2.0, 1.0], np.array([1, 0], np.int8)])
def test_labels_come_back_as_they_were_given_and_out_of_a_file_too(labels, tmp_path):
    y = np.array(labels)[[LABELS[at] == "bad" for at in range(len(TEXTS))] * np.array(1)]
    fitted = TextClassifier("bert", features="words").fit(TEXTS, y)
    assert fitted.predict(TEXTS).dtype == fitted.classes_.dtype == y.dtype and fitted.score(TEXTS, y) == 1.0
    fitted.save(tmp_path / "saved")
    assert TextClassifier.load(tmp_path / "saved").predict(TEXTS).dtype == y.dtype


SPARSE = pytest.importorskip("scipy.sparse").csr_matrix(np.eye(3))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("one text", "X is 'one text', a str"),
        (SPARSE, "sparse"),
        ({"a film", "a play"}, "a set"),
        ({"text": "a film"}, "a dict"),
        ([], "no items"),
        (["a film", None, float("nan"), 3], "item 1 of X is null"),
        (np.zeros((3, 2)), "one column is read"),
        (["half of a pair \ud800"], "item 0 of X"),
    ],
)
def test_what_is_no_column_of_texts_is_refused_in_a_sentence(fitted, given, said):
    with pytest.raises(RankwiseError, match=said):
        fitted.predict(given)


def test_wrong_parameters_and_labels_are_refused_all_at_once():
    with pytest.raises(RankwiseError, match=r"method is 'qlora'; it may be probe or lora\.\nfeatures is 'all'"):
        TextClassifier("bert", method="qlora", features="all").fit(TEXTS, LABELS)
    for length in (2, "all", None):
        with pytest.raises(RankwiseError, match=r"max_length is .*; it must be a whole number, at least 3"):
            TextClassifier("bert", max_length=length).fit(TEXTS, LABELS)
    with pytest.raises(RankwiseError, match="y has one class"):
        TextClassifier("bert").fit(TEXTS, ["a"] * len(TEXTS))
    with pytest.raises(NotFittedError):
        TextClassifier("bert").predict(TEXTS)


class Missing:
    """As pandas' NA, which answers each comparison with itself."""

    def __ne__(self, other):
        return self

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")

    def __repr__(self):
        return "<NA>"


@pytest.mark.parametrize("missing", [float("nan"), None, np.nan, np.datetime64("NaT"), Missing()], ids=repr)
@pytest.mark.parametrize("kind", [TextClassifier, TextRegressor])
def test_a_missing_label_is_refused_with_its_row_and_never_a_class(kind, missing):
    others = ["a"] if kind is TextClassifier else [1.0, 2.5]
    y = [*others, missing, *others * len(TEXTS)][: len(TEXTS)]
    for given in (y, np.array(y, dtype=object)):
        with pytest.raises(RankwiseError, match=rf"item {len(others)} of y is .*this row has no label\. Leave it out"):
            kind("bert").fit(TEXTS, given)


@pytest.mark.parametrize("other", [1, 1.0, True, b"1", np.int64(1)])
def test_texts_beside_other_labels_are_refused_before_they_are_merged(other):
    with pytest.raises(RankwiseError, match=r"y has the labels .* and '1', which is a text"):
        TextClassifier("bert").fit(TEXTS, [other, "1"] * (len(TEXTS) // 2))


def test_a_number_whose_square_overflows_is_refused_where_it_would_predict_nan():
    with pytest.raises(RankwiseError, match=r"item 3 of y is -1e\+300; numbers beyond 1e\+18"):
        TextRegressor("bert").fit(TEXTS, [1.0, 2.0, 3.0, -1e300] * (len(TEXTS) // 4))
    numbers = [1e18, -1e18, 0.0, 5.0] * (len(TEXTS) // 4)
    assert np.isfinite(TextRegressor("bert", features="words").fit(TEXTS, numbers).predict(TEXTS)).all()


@pytest.mark.parametrize("other", ["Good", "good ", "caf\u00e9"])
def test_labels_that_differ_in_their_spelling_alone_are_told(other, caplog):
    first = "cafe\u0301" if other.startswith("caf") else "good"
    TextClassifier("bert", features="words").fit(TEXTS, [first if at % 2 else other for at in range(len(TEXTS))])
    assert (
        "these labels differ only in case, spaces, marks, Unicode form" in caplog.text and "item 0 of y" in caplog.text
    )


def test_an_adapter_s_labels_may_have_spaces_around_them_but_not_differ_in_these_alone():
    y = [f" {label}" for label in LABELS]
    fitted = TextClassifier("bert", method="lora", settings=FEW).fit(TEXTS, y)
    assert set(fitted.predict(TEXTS)) <= set(y)
    with pytest.raises(RankwiseError, match="differ only in spaces around them"):
        TextClassifier("bert", method="lora", settings=FEW).fit(TEXTS, ["good", "good "] * (len(TEXTS) // 2))


def test_texts_without_words_and_parameters_of_numpy_are_learned_and_saved(tmp_path):
    fitted = TextClassifier("bert", max_length=np.int64(32)).fit(["?", "!!", "?", "!!"] * 3, ["a", "b", "a", "b"] * 3)
    fitted.save(tmp_path / "saved")
    loaded = TextClassifier.load(tmp_path / "saved")
    assert loaded.max_length == 32 and loaded.score(["?", "!!"], ["a", "b"]) == fitted.score(["?", "!!"], ["a", "b"])


def test_it_works_in_a_pipeline_a_search_and_a_cross_validation():
    piped = make_pipeline(TextEmbedder("bert").set_output(transform="pandas"), PCA(12), LogisticRegression(C=1e5))
    assert piped.fit(TEXTS, LABELS).score(TEXTS, LABELS) > 0.9
    assert piped[0].get_feature_names_out()[0] == "textembedder0"
    search = GridSearchCV(TextClassifier("bert"), {"features": ["words", "vectors"]}, cv=3).fit(TEXTS, LABELS)
    assert search.best_params_ == {"features": "words"} and search.score(TEXTS, LABELS) == 1.0
    assert cross_val_score(TextClassifier("bert"), TEXTS, LABELS, cv=3).mean() > 0.9


@pytest.mark.parametrize("features", ["auto", "words", "vectors", "both"])
@pytest.mark.parametrize("kind", [TextClassifier, TextRegressor])
def test_what_is_loaded_predicts_the_same_to_the_bit_without_pickle(kind, features, tmp_path):
    y = np.array([len(text) for text in TEXTS]) / 7 if kind is TextRegressor else np.arange(len(TEXTS)) % 3
    fitted = kind("bert", features=features).fit(TEXTS, y)
    fitted.save(tmp_path / "saved")
    loaded = kind.load(tmp_path / "saved")
    assert loaded.get_params() == fitted.get_params() and loaded.n_features_in_ == 1
    assert loaded.advice_ == fitted.advice_ and "left out" in loaded.advice_
    for other in (loaded, deepcopy(fitted)):
        assert np.array_equal(other.predict(TEXTS), fitted.predict(TEXTS))
    if kind is TextClassifier:
        assert np.array_equal(loaded.predict_proba(TEXTS), fitted.predict_proba(TEXTS))
    assert {file.suffix for file in (tmp_path / "saved").iterdir()} == {".json", ".safetensors"}
    with pytest.raises(RankwiseError, match="cannot load it"):
        ImageClassifier.load(tmp_path / "saved")


@pytest.mark.parametrize(
    "damage",
    [{"parameters": None}, {"parameters": {"method": "x"}}, {"learned": {"classes_": ["<U5", []]}}, {"learned": 3},
     {"learned": {"classes_": ["nope", ["a"]]}}, {"fitted": {"columns": "words", "more": 1}},
     {"learned": {"classes_": ["<U1", ["a", "b", "c"]]}}],
)  # fmt: skip
def test_a_damaged_folder_is_one_sentence(damage, tmp_path):
    TextClassifier("bert", features="words").fit(TEXTS, LABELS).save(tmp_path / "saved")
    file = tmp_path / "saved" / "estimator.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    with pytest.raises(RankwiseError, match="damaged"):
        TextClassifier.load(tmp_path / "saved")


def test_a_base_with_other_weights_is_refused(tmp_path):
    base = encoder_folder(tmp_path / "base")
    TextClassifier(str(base), features="vectors").fit(TEXTS, LABELS).save(tmp_path / "saved")
    loaded = TextClassifier.load(tmp_path / "saved")
    encoder_folder(tmp_path / "other", seed=1)
    base.rename(tmp_path / "first")
    (tmp_path / "other").rename(base)
    cached_reader.cache_clear()
    with pytest.raises(RankwiseError, match="other weights"):
        loaded.predict(TEXTS)


def test_a_trained_adapter_is_an_estimator_too(tmp_path):
    fitted = TextClassifier("bert", method="lora", folder=str(tmp_path / "kept"), settings=FEW).fit(TEXTS, LABELS)
    assert not hasattr(fitted, "decision_function")
    run = rankwise.load_run(tmp_path / "kept" / "runs" / "estimator")
    shares = [[one["probabilities"][name] for name in ("bad", "good")] for one in run.predict(TEXTS)]
    np.testing.assert_allclose(fitted.predict_proba(TEXTS), shares, atol=1e-6)
    fitted.save(tmp_path / "saved")
    for other in (TextClassifier.load(tmp_path / "saved"), deepcopy(fitted)):
        assert np.array_equal(other.predict_proba(TEXTS), fitted.predict_proba(TEXTS))


def test_an_adapter_over_a_base_with_a_relative_path_is_used_from_any_folder(tmp_path, monkeypatch):
    encoder_folder(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    fitted = TextClassifier("base", method="lora", settings=FEW).fit(TEXTS, LABELS)
    expected = fitted.predict(TEXTS[:2])
    monkeypatch.chdir("/")
    assert np.array_equal(deepcopy(fitted).predict(TEXTS[:2]), expected)


def test_threads_train_one_after_the_other_and_leave_the_working_folder():
    before = Path.cwd()
    tuned = [TextClassifier("bert", method="lora", settings={"steps": 1}) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        fits = [pool.submit(one.fit, TEXTS, LABELS) for one in tuned]
    first, second = (fit.result().predict_proba(TEXTS[:3]) for fit in fits)
    assert np.array_equal(first, second) and Path.cwd() == before


def test_a_regressor_trains_an_adapter_for_numbers():
    numbers = [float(len(text) % 5) for text in TEXTS]
    fitted = TextRegressor("bert", method="lora", settings=FEW).fit(TEXTS, numbers)
    assert fitted.predict(TEXTS).shape == (len(TEXTS),) and not Path("runs").exists()


def test_advice_compares_a_short_adapter_with_the_estimator_s_own_probe():
    rows = labelled(96)  # no two alike, since copies are held out together
    rows = [row | {"text": f"{row['text']} {' '.join(WORDS[8 + int(digit)] for digit in f'{at:07b}')}"}
            for at, row in enumerate(rows)]  # fmt: skip
    estimator = TextClassifier("bert", features="words", settings={"steps": 20, "held_out": 24, "backend": "eager"})
    advice = estimator.advise([row["text"] for row in rows], [row["label"] for row in rows])
    assert advice.reason == "probe" and "the probe, 72 rows is" in advice.text and "keep the probe" in advice.text
    assert advice.untrained is not None and advice.untrained.score.value == 1.0
    assert estimator.advice_ == advice.text


def test_images_are_classified_by_the_vectors_of_a_model_of_images(tmp_path):
    save_folder("vit", tmp_path / "vit")
    dark_and_light(tmp_path / "pictures")
    files = sorted((tmp_path / "pictures").rglob("*.png"))
    labels = [file.parent.name for file in files]
    fitted = ImageClassifier(str(tmp_path / "vit")).fit(files, labels)
    assert fitted.score([file.read_bytes() for file in files], labels) > 0.9
    reader = fitted.fitted_.reader
    alone = [reader.vectors([file.read_bytes()]) for file in files]
    reader._known.clear()
    assert np.array_equal(reader.vectors([file.read_bytes() for file in files]), np.concatenate(alone))
    fitted.save(tmp_path / "saved")
    loaded = ImageClassifier.load(tmp_path / "saved")
    assert np.array_equal(loaded.predict_proba(files), fitted.predict_proba(files))
    with pytest.raises(RankwiseError, match="item 1"):
        fitted.predict([files[0], "no such file"])


def test_without_scikit_learn_one_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "rankwise.sklearn")
    monkeypatch.setattr("rankwise.system.extras.find_spec", lambda name: None)
    with pytest.raises(
        RankwiseError, match=r'needs sklearn, which is not installed: pip install "rankwise\[sklearn\]"'
    ):
        import rankwise.sklearn  # noqa: F401
