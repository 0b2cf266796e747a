"""`rankwise data preview` of images writes a contact sheet that shows what the terminal lists."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from kit.command import rankwise
from kit.vision_models import save_folder

COLORS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two images of each of three classes, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name, color in COLORS.items():
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (10, 20), color).save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path / "pictures"


def preview(*words):
    return rankwise("data", "preview", *words)


def colors_of(path):
    """The colours of the tiles, from left to right and from top to bottom."""
    sheet = np.asarray(Image.open(path))
    centres = [(8 + row * 188 + 80, 8 + column * 168 + 80) for row in range(2) for column in range(6)]
    inside = [sheet[y, x] for y, x in centres if y < sheet.shape[0] and x < sheet.shape[1]]
    names = {tuple(color): name for name, color in COLORS.items()}
    return [names[tuple(color.tolist())] for color in inside if tuple(color.tolist()) in names]


def test_the_sheet_shows_each_image_that_is_listed(folder, tmp_path):
    result = preview(folder)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        *(f"  {number}  {folder}/{name}/{at}.png  {name}  10 x 20"
          for number, (name, at) in enumerate([(n, a) for n in sorted(COLORS) for a in (0, 1)], start=1)),
        "wrote contact_sheet.png",
    ]  # fmt: skip
    assert colors_of(tmp_path / "contact_sheet.png") == ["blue", "blue", "green", "green", "red", "red"]


def test_a_second_row_of_tiles_is_below_the_first(folder, tmp_path):
    for number in range(2, 4):
        Image.new("RGB", (10, 20), COLORS["blue"]).save(folder / "red" / f"{number}.png")
    assert preview(folder).exit_code == 0
    assert colors_of(tmp_path / "contact_sheet.png") == ["blue"] * 2 + ["green"] * 2 + ["red"] * 2 + ["blue"] * 2


def test_rows_are_drawn_from_all_or_counted_from_the_first(folder, tmp_path):
    result = preview(folder, "--rows", 2, "--first", 4, "--out", "sheet.png", "--json")
    shown = json.loads(result.output)
    assert shown["out"] == "sheet.png"
    assert [row["label"] for row in shown["rows"]] == ["green", "red"]
    assert colors_of(tmp_path / "sheet.png") == ["green", "red"]
    drawn = {
        row["label"]
        for seed in range(8)
        for row in json.loads(preview(folder, "--rows", 2, "--json", "--set", f"data.seed={seed}").output)["rows"]
    }
    assert drawn == set(COLORS)


def test_a_file_that_is_no_sheet_is_never_replaced(folder, tmp_path):
    assert preview(folder).exit_code == 0
    assert preview(folder, "--rows", 1).exit_code == 0  # a sheet is replaced by a newer one
    before = (folder / "red" / "0.png").read_bytes()
    refused = preview(folder, "--out", folder / "red" / "0.png")
    assert refused.exit_code == 2
    assert "already exists and is no contact sheet. Give --out another name." in refused.output
    assert (folder / "red" / "0.png").read_bytes() == before
    assert "must end in .png" in preview(folder, "--out", "sheet.pdf").output


def test_a_bad_image_is_named(folder):
    (folder / "red" / "2.png").write_bytes(b"no image")
    refused = preview(folder)
    assert refused.exit_code == 2
    assert f"{folder}/red/2.png: is no image in one of the formats" in refused.output
    skipped = preview(folder, "--on-bad-row", "skip")
    assert skipped.exit_code == 0
    assert f"left out: {folder}/red/2.png: is no image in one of the formats" in skipped.output


def test_texts_have_no_sheet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    refused = preview("rows.jsonl", "--out", "sheet.png")
    assert refused.exit_code == 2
    assert "--out is the name of a sheet of images, but these rows are texts" in refused.output


def test_long_and_foreign_labels_fit_into_a_tile(folder, tmp_path):
    (folder / "red").rename(folder / ("r" * 200))
    (folder / "blue").rename(folder / "猫\n")
    assert preview(folder).exit_code == 0
    assert Image.open(tmp_path / "contact_sheet.png").size == (6 * 168 + 8, 188 + 8)


def test_so_is_a_model_that_does_not_read_what_is_to_be_shown(folder, tiny_folder, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": "c", "label": "d"}\n')
    vision = save_folder("vit", tmp_path / "vision")
    for rows, model, why in (
        (folder, tiny_folder, f"holds images, and the model {tiny_folder} reads texts"),
        (tmp_path / "rows.jsonl", vision, f"holds texts, and the model {vision} reads images"),
    ):
        refused = preview(rows, "--model", model)
        assert refused.exit_code == 2 and why in refused.output
