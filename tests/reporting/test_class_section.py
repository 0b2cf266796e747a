"""The section on classes shows what the evaluation's file says, in a form that fits the number of classes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from kit.report_runs import PIXEL, made_run
from rankwise.commands.report import report
from rankwise.evaluation.class_metrics import RowView, ScoredClasses, class_details
from rankwise.reporting.markup import picture
from rankwise.runs.evaluations import evaluation_path, read_evaluation, write_evaluation
from rankwise.runs.measured import Difference, FeatureForgetting, Measurement
from rankwise.runs.row_facts import TargetFacts


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def page_of(classes, items=400, thumbnail=None):
    """The page and the data of a run whose classifier knows so many classes, and the details of its evaluation."""
    generator = np.random.default_rng(0)
    actual = generator.integers(0, classes, items)
    shares = generator.dirichlet(np.full(classes, 0.2), items)
    shares[np.arange(items), actual] += 0.3
    names = tuple(f"kind {number}" for number in range(classes))
    scored = ScoredClasses(TargetFacts(classes=names, counts=(1,) * classes), shares / shares.sum(1, keepdims=True),
                    actual.astype(float).tolist())  # fmt: skip
    details = class_details(
        scored, lambda number, drawn: RowView(f"f/{number}.png", None, thumbnail if drawn else None)
    )
    run = made_run()
    path = evaluation_path(run, "task")
    before = read_evaluation(path)
    write_evaluation(path, before.model_copy(update={
        "tuned": before.tuned.model_copy(update={"classification": details})
    }))  # fmt: skip
    made = report("r")
    section = re.search(r'<section id="classes">.*?</section>', made.page.read_text(), re.DOTALL)
    assert section is not None
    return section[0], json.loads(made.data.read_text()), details


def test_few_classes_have_a_matrix_with_every_count():
    page, data, details = page_of(6)
    matrix = re.search(r'<table class="matrix">(.*?)</table>', page, re.DOTALL)[1]
    lines = [re.findall(r"<td[^>]*>([\d,]*)</td>", line) for line in re.findall(r"<tr>(.*?)</tr>", matrix)][1:]
    counts = np.array([[int(cell.replace(",", "") or 0) for cell in line] for line in lines])
    expected = np.zeros((6, 6), int)
    for actual, predicted, count in details.confusion:
        expected[actual, predicted] = count
    assert (counts == expected).all() and counts.sum() == 400
    assert matrix.count('class="hit') == 6
    assert "The most frequent confusions" not in page
    assert data["classes"]["task"]["confusion"] == [list(entry) for entry in details.confusion]
    assert "classification" not in data["quality"][0]


def test_many_classes_have_their_weakest_and_their_confusions():
    page, _, details = page_of(60, items=1500)
    assert 'class="matrix"' not in page and "The most frequent confusions" in page
    assert "The 20 classes with the lowest F1 of 60:" in page and "All 60 classes" in page
    worst = min((one for one in details.classes if one.f1 is not None), key=lambda one: one.f1.value)
    first = re.search(r"<tbody><tr><td[^>]*>(kind \d+)</td>", page)[1]
    assert first == worst.name
    counts = [int(count) for count in re.findall(r'data-label="rows">(\d+)</td><td[^>]*share of the class', page)]
    assert len(counts) == 20 and counts == sorted(counts, reverse=True)


def test_wrong_images_are_in_the_page_itself_and_not_in_its_data():
    page, data, details = page_of(5, thumbnail=PIXEL)
    assert page.count(f'<img src="{PIXEL}"') == 24 and "24 of them are shown" in page
    assert PIXEL not in json.dumps(data)
    assert details.wrong[0].name in page and len(data["classes"]["task"]["wrong"]) == 24


def test_the_calibration_of_each_range_is_described():
    page, _, details = page_of(3)
    label = re.search(r'class="chart narrow"[^>]*aria-label="([^"]* right at [^"]*)"', page)[1]
    assert label.count(" right at ") == len(details.calibration)


def test_a_run_without_classes_has_no_such_section():
    run = made_run()
    path = evaluation_path(run, "task")
    before = read_evaluation(path)
    write_evaluation(path, before.model_copy(update={
        "tuned": before.tuned.model_copy(update={"classification": None})
    }))  # fmt: skip
    made = report("r")
    assert 'id="classes"' not in made.page.read_text() and "classes" not in json.loads(made.data.read_text())


def test_what_became_of_features_stands_under_forgetting():
    run = made_run()
    path = evaluation_path(run, "task")
    probe = Difference(a=0.8, b=0.6, difference=-0.2, low=-0.3, high=-0.1, p=0.001, n=90, verdict="worse")
    cka = Measurement(value=0.7, low=0.6, high=0.8)
    features = FeatureForgetting(cka=cka, probe=probe, images=90, classes=("a", "b"),
                                 data="other images", sha256="0" * 64)  # fmt: skip
    before = read_evaluation(path)
    write_evaluation(path, before.model_copy(update={"forgetting": None, "feature_forgetting": features}))
    made = report("r")
    section = re.search(r'<section id="forgetting">.*?</section>', made.page.read_text(), re.DOTALL)[0]
    for words in ("90 of other images", "0.700 (0.600 to 0.800)", "linear probe of 2 classes", "60 % with the tuned"):
        assert words in section
    assert json.loads(made.data.read_text())["forgetting"]["features"][0]["images"] == 90


@pytest.mark.parametrize("address", ["https://example.com/a.png", "data:image/svg+xml;base64,AA", "a.png"])
def test_no_page_shows_a_picture_that_lies_elsewhere(address):
    with pytest.raises(ValueError, match="elsewhere"):
        picture(address, "a")
