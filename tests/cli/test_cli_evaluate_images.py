"""`rankwise evaluate` of a classifier of images: wrong images by name and picture, and items that are their pixels."""

from __future__ import annotations

import io
import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kit.command import done, printed, rankwise
from kit.vision_models import SIZE, save_folder

COLOURS = {"blue": (30, 40, 220), "green": (40, 200, 60), "red": (220, 30, 40)}


def striped_folder(path: str, each: int) -> str:
    """Grey images with stripes across or down, which have nothing to do with colours."""
    generator, stripes = np.random.default_rng(9), 90 * (np.arange(SIZE) // 4 % 2)
    for name, pattern in (("across", stripes[:, None]), ("down", stripes[None, :])):
        folder = Path(path) / name
        folder.mkdir(parents=True)
        for number in range(each):
            pixels = 60 + pattern[..., None] + generator.integers(0, 60, (SIZE, SIZE, 1)) + np.zeros((1, 1, 3), int)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return path


def image_folder(path: str, each: int, seed: int, shift: int = 0) -> str:
    """Noisy images of one colour a class; a `shift` moves each class's images to the next class."""
    generator, names = np.random.default_rng(seed), list(COLOURS)
    for at, name in enumerate(names):
        folder = Path(path) / names[(at + shift) % len(names)]
        folder.mkdir(parents=True)
        for number in range(each):
            noise = generator.integers(-25, 26, (SIZE, SIZE, 3))
            pixels = np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}-{number}.png")
    return path


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_folder("vit", "tiny")
        image_folder("train", 6, 0)
        image_folder("apart", 4, 1)
        done(
            "train", "--model", "tiny", "--data", "train", "--validation-data", "apart", "--run", "colours",
            "--steps", "40", "--learning-rate", "0.01", "--batch-size", "6", "--set", "model.dtype=float32",
        )  # fmt: skip
        yield folder


def evaluated(*words: str, out: str = "out.json") -> tuple[dict[str, Any], dict[str, Any]]:
    summary = printed("evaluate", "colours", *words, "--quiet", "--out", out)
    return summary, json.loads(Path(out).read_text())


def test_wrong_images_have_their_file_and_their_picture(here):
    summary, stored = evaluated("--data", image_folder("shifted", 4, 2, shift=1))
    wrong = stored["tuned"]["classification"]["wrong"]
    assert summary["metrics"]["accuracy"]["value"] < 0.5 and len(wrong) == summary["classification"]["wrong_rows"] > 6
    for row in wrong:
        file = Path(row["name"])
        assert file.is_file() and file.parent.name == row["actual"] and row["text"] is None
        picture = Image.open(io.BytesIO(b64decode(row["thumbnail"].partition(",")[2])))
        assert (np.asarray(picture) == np.asarray(Image.open(file))).all(), "the model saw these pixels"
    assert all("thumbnail" not in row for row in summary["classification"]["wrong"])


def test_the_report_of_the_run_shows_what_is_wrong(here):
    done("evaluate", "colours", "--data", image_folder("half", 3, 3, shift=2), "--quiet")
    page = Path("runs/colours/report.html").read_text()
    assert 'id="classes"' in page and page.count('<img src="data:image/png;base64,') >= 5
    assert "img-src data:" in page.partition("</head>")[0]


def test_the_same_labels_on_other_pixels_are_other_items(here):
    _, one = evaluated("--data", image_folder("first", 2, 4))
    _, again = evaluated("--data", "first", out="again.json")
    _, other = evaluated("--data", image_folder("second", 2, 5), out="other.json")
    assert one["items_sha256"] == again["items_sha256"] != other["items_sha256"]
    assert one["settings"]["image_size"] == SIZE


def test_the_validation_rows_give_the_accuracy_of_the_training(here):
    results = json.loads(Path("runs/colours/manifest.json").read_text())["results"]
    summary, _ = evaluated(out="own.json")
    assert summary["metrics"]["accuracy"]["value"] == results["validation_accuracy_after"] >= 0.75


def test_features_of_other_images_are_compared_with_those_of_the_base(here):
    stripes = striped_folder("stripes", 24)
    result = done("evaluate", "colours", "--other-images", stripes)
    features = json.loads(Path("runs/colours/evaluations/held-out.json").read_text())["feature_forgetting"]
    assert features["images"] == 48 and features["classes"] == ["across", "down"]
    assert features["cka"]["value"] < 0.999 and features["cka"]["low"] <= features["cka"]["value"]
    assert 0.5 <= features["probe"]["a"] <= 1 and features["probe"]["n"] == 48
    assert "48 of stripes" in result.stdout
    assert "CKA of base and tuned features" in Path("runs/colours/report.html").read_text()
    again = done("evaluate", "colours", "--json")
    assert json.loads(again.stdout)["feature_forgetting"] == features, "a later evaluation keeps what was measured"
    assert "has forgotten is not measured. Give labelled images" in again.stderr


def test_a_head_alone_changes_no_feature(here):
    done(
        "train", "--model", "tiny", "--data", "train", "--run", "head", "--method", "head", "--steps", "5",
        "--held-out", "3", "--learning-rate", "0.1", "--set", "model.dtype=float32",
    )  # fmt: skip
    measured = printed("evaluate", "head", "--other-images", striped_folder("more", 24))["feature_forgetting"]
    assert measured["cka"]["value"] == pytest.approx(1, abs=1e-9) and measured["probe"]["difference"] == 0


def test_features_of_a_fully_trained_model_are_compared_with_those_of_its_base(here):
    done(
        "train", "--model", "tiny", "--data", "train", "--run", "full", "--method", "full", "--steps", "20",
        "--held-out", "3", "--learning-rate", "0.01",
    )  # fmt: skip
    measured = printed("evaluate", "full", "--other-images", striped_folder("others", 24))["feature_forgetting"]
    assert measured["images"] == 48 and measured["cka"]["value"] < 0.999


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--other-images", "train"), "belongs to the data of the run"),
     (("--other-images", "apart", "--no-forgetting"), "--other-images needs two models")],
)  # fmt: skip
def test_images_that_show_nothing_are_refused(here, words, said):
    result = rankwise("evaluate", "colours", *words)
    assert result.exit_code == 2 and said in " ".join(result.stderr.split()), result.output
