"""Details of a classifier's evaluation: each figure by its definition, and pictures that stay small."""

from __future__ import annotations

import io
from base64 import b64decode

import numpy as np
import pytest
from PIL import Image

from rankwise.errors import ConfigError
from rankwise.evaluation.class_metrics import MOST_WRONG, THUMBNAILS, RowView, ScoredClasses, class_details
from rankwise.evaluation.metrics import METRICS
from rankwise.reporting.classes import class_blocks, most_confused
from rankwise.reporting.markup import lines_of
from rankwise.rows.images.pictures import thumbnail_of
from rankwise.runs.measured import LARGEST_THUMBNAIL, ClassDetails, WrongRow
from rankwise.runs.row_facts import TargetFacts


def scored(items: int, classes: int, seed: int = 0) -> ScoredClasses:
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(items, classes))
    actual = generator.integers(0, classes - 1, items)  # the last class never occurs
    logits[np.arange(items), actual] += 1.5
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    names = tuple(f"class {number}" for number in range(classes))
    return ScoredClasses(TargetFacts(classes=names, counts=(1,) * classes), shares, actual.astype(float).tolist())


def plain(number: int, with_thumbnail: bool) -> RowView:
    return RowView(f"rows.jsonl:{number + 1}", text="shown" if with_thumbnail else None)


def test_each_class_by_the_definition_of_its_figures():
    one = scored(200, 5)
    details = class_details(one, plain)
    predicted, actual = np.array(one.predicted), np.array(one.actual)
    for number, figures in enumerate(details.classes):
        hit, said, true = ((predicted == number) & (actual == number)).sum(), (predicted == number), (actual == number)
        assert (figures.rows, figures.predicted) == (true.sum(), said.sum())
        expected = {"precision": hit / said.sum(), "recall": hit / true.sum() if true.any() else None,
                    "f1": 2 * hit / (said.sum() + true.sum())}  # fmt: skip
        for name, value in expected.items():
            measured = getattr(figures, name)
            assert (measured is None) == (value is None)
            assert measured is None or measured.value == pytest.approx(value)
            assert measured is None or measured.low <= measured.value <= measured.high
    mean = np.mean([figures.f1.value for figures in details.classes])
    assert METRICS["f1"].value(one.rows["f1"]) == pytest.approx(mean)


def test_confusions_and_ranges_of_calibration_count_each_row_once():
    one = scored(300, 4)
    details = class_details(one, plain)
    matrix = np.zeros((4, 4), int)
    for actual, predicted, count in details.confusion:
        matrix[actual, predicted] = count
    assert matrix.sum() == 300 == sum(part.rows for part in details.calibration)
    assert np.trace(matrix) == sum(hit for hit, _ in one.rows["accuracy"]) == 300 - details.wrong_rows
    error = sum(part.rows / 300 * abs(part.confidence - part.right.value) for part in details.calibration)
    assert error == pytest.approx(METRICS["calibration_error"].value(one.calibration))
    assert most_confused(details)[0][2] == (matrix - np.diag(np.diag(matrix))).max()


def test_wrong_rows_are_the_most_confident_ones_and_only_the_first_are_drawn():
    one = scored(3000, 6)
    details = class_details(one, plain)
    wrong = np.array(one.predicted) != np.array(one.actual)
    assert details.wrong_rows == wrong.sum() > MOST_WRONG == len(details.wrong)
    assert [row.probability for row in details.wrong] == sorted(one.outputs.max(1)[wrong], reverse=True)[:MOST_WRONG]
    numbers = [int(row.name.partition(":")[2]) - 1 for row in details.wrong]
    assert [row.actual for row in details.wrong] == [f"class {one.actual[number]:.0f}" for number in numbers]
    assert [row.predicted for row in details.wrong] == [f"class {one.predicted[number]}" for number in numbers]
    assert [row.text for row in details.wrong] == ["shown"] * THUMBNAILS + [None] * (MOST_WRONG - THUMBNAILS)


def test_a_thousand_classes_stay_a_small_file():
    one = scored(2000, 1000)
    details = class_details(one, plain)
    assert len(details.model_dump_json()) < 800_000
    assert sum(len(row) for row in one.rows["f1"]) == 2 * 2000
    assert ClassDetails(**details.model_dump(mode="json")) == details
    lines = lines_of(class_blocks(details))
    assert lines[0] == "The 20 classes with the lowest F1 of 1,000:" and len(lines) < 40


def test_a_class_that_never_occurs_has_no_figures():
    targets = TargetFacts(classes=("a", "b", "c"), counts=(1, 1, 1))
    details = class_details(ScoredClasses(targets, np.array([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1]]), [0.0, 0.0]), plain)
    a, b, c = details.classes
    assert a.f1.value == a.recall.value == 1.0 and a.recall.low < 0.5, "two rows show little"
    assert (b.precision, b.recall, b.f1) == (c.precision, c.recall, c.f1) == (None, None, None)
    assert details.wrong == [] and details.wrong_rows == 0


@pytest.mark.parametrize(("shape", "kind", "size"), [((32, 32, 3), "PNG", (32, 32)), ((224, 224, 3), "JPEG", (96, 96)),
                                                     ((300, 60, 3), "JPEG", (19, 96))])  # fmt: skip
def test_a_thumbnail_shows_the_image_and_is_small_even_if_it_is_noise(shape, kind, size):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    uri = thumbnail_of(pixels)
    assert len(uri) <= LARGEST_THUMBNAIL
    picture = Image.open(io.BytesIO(b64decode(uri.partition(",")[2])))
    assert (picture.format, picture.size) == (kind, size)
    if kind == "PNG":
        assert (np.asarray(picture) == pixels).all()
    WrongRow(name="a.png", actual="a", predicted="b", probability=0.9, probability_of_actual=0.1, thumbnail=uri)


@pytest.mark.parametrize(
    "uri",
    ["https://example.org/a.png", "data:text/html;base64,AAAA", "data:image/svg+xml;base64,AA",
     'data:image/png;base64,AA"onload=', "data:image/png;base64,AAAA\n", f"data:image/png;base64,{'A' * 30_000}"],
)  # fmt: skip
def test_a_stored_picture_can_be_nothing_but_a_few_pixels(uri):
    with pytest.raises(ConfigError, match="thumbnail"):
        WrongRow(name="a", actual="a", predicted="b", probability=0.9, probability_of_actual=0.1, thumbnail=uri)
