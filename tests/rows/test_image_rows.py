"""Images are read as rows from folders, tables, Parquet, arrays and the hub; a bad one is a bad row with its file."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rankwise.commands.predict import file_of
from rankwise.config.data import DataConfig
from rankwise.errors import DataError
from rankwise.rows.asking import question_of
from rankwise.rows.files import hub
from rankwise.rows.images.decode import decode
from rankwise.rows.preparing import content_identity
from rankwise.rows.report.raw_rows import RawReport
from rankwise.rows.sources import open_source, raw_records


def picture(color="red", size=(12, 8)):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder, names):
    """Write a small image to each name; a text to a name that is no image's."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        is_image = path.suffix.lower() in (".png", ".jpg", ".gif")
        path.write_bytes(picture((number * 20 % 256, 0, 0)) if is_image else b"not an image\n")
    return folder


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path, **settings):
    spec = DataConfig(path=str(path), **settings)
    reading = open_source(spec, spec.all_sources[0])
    return reading, [example for chunk in reading.chunks() for row in chunk for example in row]


def reported(path, **settings):
    spec = DataConfig(path=str(path), **settings)
    raw = RawReport(open_source(spec, spec.all_sources[0]))
    assert list(raw.reading.chunks(raw.add))
    return raw


def labelled(path, **settings):
    """The name and label of each row; all must be readable and decodable."""
    reading, examples = read(path, **settings)
    assert reading.skipped == []
    assert {part.format for part in reading.parts} == {"image"}
    assert all(decode(example.image, example.where).width for example in examples)
    return [tuple(message.content for message in example.messages) for example in examples]


def problems(path, **settings):
    return [why for _, why in read(path, **settings)[0].skipped]


def questions(path, **settings):
    spec = DataConfig(path=str(path), **settings)
    reading = open_source(spec, spec.all_sources[0])
    return [
        question_of(reading, part, where, row, "image") for part in reading.parts for where, row in raw_records(part)
    ]


# Image folders


def test_the_label_is_the_name_of_the_folder(tmp_path):
    write(tmp_path, ["cat/1.png", "dog/1.JPG", "dog/2.gif"])
    assert labelled(tmp_path) == [("cat/1.png", "cat"), ("dog/1.JPG", "dog"), ("dog/2.gif", "dog")]
    assert read(tmp_path)[1][1].where == str(tmp_path / "dog/1.JPG")


def test_the_training_split_is_read_unless_another_is_named(tmp_path):
    write(tmp_path, ["train/cat/test_1.png", "train/dog/2.png", "val/cat/3.png", "test/dog/4.png"])
    assert labelled(tmp_path) == [("train/cat/test_1.png", "cat"), ("train/dog/2.png", "dog")]
    assert read(tmp_path)[0].left_aside == ["test (1 images)", "val (1 images)"]
    assert labelled(tmp_path, split="validation") == [("val/cat/3.png", "cat")]
    with pytest.raises(DataError, match=r'no images of a split "dev2".*Its splits are test, train, val'):
        read(tmp_path, split="dev2")


def test_train_is_a_class_beside_other_classes(tmp_path):
    write(tmp_path, ["train/1.png", "car/1.png"])
    assert labelled(tmp_path) == [("car/1.png", "car"), ("train/1.png", "train")]


def test_images_of_a_split_without_class_folders_have_no_label(tmp_path):
    write(tmp_path, ["train/cat/1.png", "test/1.png"])
    assert labelled(tmp_path) == [("train/cat/1.png", "cat")]
    (problem,) = problems(tmp_path, split="test")
    assert problem.startswith(
        f"{tmp_path / 'test/1.png'}: has an image and no label. Put the images of each class into"
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat/1.png", "cat/more/2.png"], "images lie in the folder cat and also in cat/more"),
        (["a/cat/1.png", "b/cat/2.png"], "the folders a/cat and b/cat have the same name"),
    ],
)
def test_unclear_class_folders_are_refused(names, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, names))


def test_what_is_no_image_is_listed_and_an_empty_class_is_named(tmp_path):
    write(tmp_path, ["cat/1.png", "dog/1.png", "dog/notes.txt", ".hidden.png", ".git/x", "README.md"])
    (tmp_path / "bird").mkdir()
    reading, examples = read(tmp_path)
    assert len(examples) == 2
    assert reading.passed_over == [".git", ".hidden.png", "dog/notes.txt"]
    assert reported(tmp_path).warnings() == [f"{tmp_path}/bird: contains no image"]


def test_a_link_out_of_the_folder_is_a_bad_row(tmp_path):
    elsewhere = write(tmp_path / "elsewhere", ["secret.png", "many/1.png"])
    folder = write(tmp_path / "pets", ["cat/1.png", "dog/1.png"])
    (folder / "cat" / "2.png").symlink_to(elsewhere / "secret.png")
    (folder / "cat" / "3.png").symlink_to(folder / "cat" / "1.png")  # inside: fine
    (folder / "bird").symlink_to(elsewhere / "many")
    reading, examples = read(folder)
    assert [example.messages[0].content for example in examples] == ["cat/1.png", "cat/3.png", "dog/1.png"]
    assert [why.removeprefix(str(folder)) for _, why in reading.skipped] == [
        "/bird: is a symbolic link to a folder, which is not followed. Copy the folder.",
        f"/cat/2.png: its image cat/2.png is a symbolic link that leads out of the folder {folder}. Copy the image "
        "into the folder.",
    ]


# Metadata and tables


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_metadata_names_the_images_and_their_labels(name, tmp_path):
    write(tmp_path, ["1.png", "inside/2.png"])
    rows = [{"file_name": "1.png", "label": "cat"}, {"file_name": "inside/2.png", "label": "dog"}]
    if name.endswith("jsonl"):
        lines(tmp_path / name, rows)
    else:
        (tmp_path / name).write_text("file_name,label\n" + "".join(f"{r['file_name']},{r['label']}\n" for r in rows))
    assert labelled(tmp_path) == [("1.png", "cat"), ("inside/2.png", "dog")]


def test_metadata_of_captions_is_no_text(tmp_path):
    write(tmp_path, ["1.png"])
    lines(tmp_path / "metadata.jsonl", [{"file_name": "1.png", "text": "a cat that sits"}])
    (problem,) = problems(tmp_path)
    assert "metadata.jsonl:1: has an image and no label. Its columns are 'file_name', 'text'" in problem


@pytest.mark.parametrize("field", ["image", "file_name", "file", "path"])
def test_a_column_with_a_path_is_an_image(field, tmp_path):
    write(tmp_path, ["pictures/1.png"])
    file = lines(tmp_path / "rows.jsonl", [{field: "pictures/1.png", "label": 1}])
    assert labelled(file, labels=("cat", "dog")) == [("pictures/1.png", "dog")]


def test_columns_with_names_of_ones_own(tmp_path):
    write(tmp_path, ["1.png"])
    file = lines(tmp_path / "rows.jsonl", [{"photo": "1.png", "kind": "cat", "id": 7}])
    assert labelled(file, columns={"image": "photo", "label": "kind"}) == [("1.png", "cat")]
    assert list(reported(file, columns={"image": "photo", "label": "kind"}).unused[str(file)].columns) == ["id"]


def test_a_label_under_another_name_is_proposed(tmp_path):
    write(tmp_path, ["1.png"])
    (problem,) = problems(lines(tmp_path / "rows.jsonl", [{"image": "1.png", "category": "cat"}]))
    assert problem.endswith("has an image and no label. Its columns are 'image', 'category'; name the label's with "
                            "--label category.")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../out.png", "its image ../out.png leads out of the folder"),
        ("missing.png", "its image missing.png is missing: there is no such file in"),
        ("x" * 5000 + ".png", "is missing: there is no such file"),
        ("data:image/png;base64,AAAA", "is a data: URL"),
        ("https://example.org/1.png", "is the web address https://example.org/1.png. Download it"),
        ("a\0b.png", "cannot be looked up"),
        (["1.png", "1.png"], "its image is a list"),
        (7, "its image is 7; a path or the bytes of an image file are expected"),
    ],
)
def test_a_path_that_is_none_is_a_bad_row(name, message, tmp_path):
    write(tmp_path, ["out.png", "rows/1.png"])
    file = lines(tmp_path / "rows/rows.jsonl", [{"image": "1.png", "label": "cat"}, {"image": name, "label": "dog"}])
    (problem,) = problems(file)
    assert problem.startswith(f"{file}:2: ")
    assert message in problem


def test_an_image_beside_a_text_is_refused(tmp_path):
    write(tmp_path, ["1.png"])
    row = {"image": "1.png", "prompt": "What is it?", "completion": "A cat"}
    (problem,) = problems(lines(tmp_path / "rows.jsonl", [row]))
    assert "has an image in the column 'image' beside the columns of the prompt format" in problem
    assert "--ignore-columns image" in problem
    assert len(read(tmp_path / "rows.jsonl", ignore_columns="image")[1]) == 1
    assert len(read(lines(tmp_path / "texts.jsonl", [row | {"image": None}]))[1]) == 1
    both = {"image": "1.png", "text": "a cat", "label": "cat"}
    assert "beside the columns of the classification format" in problems(lines(tmp_path / "both.jsonl", [both]))[0]
    assert labelled(tmp_path / "both.jsonl", format="image") == [("1.png", "cat")]


def test_a_path_beside_a_text_stays_a_text(tmp_path):
    row = {"text": "a cat", "label": "cat", "file": "scan.png"}
    reading, (example,) = read(lines(tmp_path / "rows.jsonl", [row]))
    assert reading.parts[0].format == "classification"
    assert example.image is None


# Parquet


def test_parquet_holds_images_as_datasets_writes_them_or_as_bytes(tmp_path):
    images = [{"bytes": picture(), "path": "a/1.png"}, {"bytes": picture(), "path": None}]
    held = [{"image": image, "label": number} for number, image in enumerate(images)]
    pq.write_table(pa.Table.from_pylist(held), tmp_path / "rows.parquet")
    assert labelled(tmp_path / "rows.parquet") == [("a/1.png", "0"), (f"{tmp_path}/rows.parquet:2", "1")]
    pq.write_table(pa.Table.from_pylist([{"image": picture(), "label": "cat"}]), tmp_path / "bytes.parquet")
    assert labelled(tmp_path / "bytes.parquet") == [(f"{tmp_path}/bytes.parquet:1", "cat")]


def test_an_image_in_an_unknown_column_is_named(tmp_path):
    pq.write_table(pa.Table.from_pylist([{"picture": picture(), "label": 3}]), tmp_path / "rows.parquet")
    (problem,) = problems(tmp_path / "rows.parquet")
    assert "rows.parquet:1: contains an image in the column 'picture'. To train on it, add --set" in problem
    assert labelled(tmp_path / "rows.parquet", columns={"image": "picture"})[0][1] == "3"


def test_at_most_64_images_are_read_at_a_time(tmp_path):
    pq.write_table(pa.Table.from_pylist([{"image": picture(), "label": 0}] * 150), tmp_path / "rows.parquet")
    spec = DataConfig(path=str(tmp_path / "rows.parquet"))
    assert [len(chunk) for chunk in open_source(spec, spec.all_sources[0]).chunks()] == [64, 64, 22]


# Arrays


def pixels(file, **arrays):
    np.savez(file, **arrays)
    return [example.image.source for example in read(file)[1]]


def test_arrays_are_images_and_the_range_of_their_values_is_named(tmp_path):
    file, labels = tmp_path / "digits.npz", np.array([4, 2])
    sixteen = np.array([[[0, 16], [8, 4]], [[1, 2], [3, 4]]], np.uint8)
    assert pixels(file, images=sixteen, labels=labels)[0].tolist() == [[0, 255], [128, 64]]
    assert read(file)[0].parts[0].layout.describe() == "2 x 2 pixels, values from 0 to 16 scaled to 0 to 255"
    large = np.kron(sixteen, np.ones((1, 4, 4), np.uint8))
    pixels(file, images=large, labels=labels)
    assert labelled(file) == [(f"{file}:1", "4"), (f"{file}:2", "2")]
    assert labelled(file, labels=("a", "b", "c", "d", "e"))[1][1] == "c"
    whole = np.array([[[0, 200], [8, 4]]], np.uint8)
    assert (pixels(file, images=whole, labels=labels[:1])[0] == whole[0]).all()
    shares = np.array([[[[0.0], [1.0]]], [[[0.5], [0.2]]]], np.float32)
    assert pixels(file, images=shares, labels=labels)[1].tolist() == [[[128], [51]]]
    centred = np.array([[[-1.0, 1.0, 0.0]]])
    assert pixels(file, images=centred, labels=labels[:1])[0].tolist() == [[0, 255, 128]]
    color = np.zeros((2, 3, 5, 3), np.uint16)
    color[0, 0, 0, 0] = 65535
    assert pixels(file, images=color, labels=labels)[0][0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.array([{}]), "labels": [1]}, "contains pickled objects, which are never read"),
        ({"images": np.zeros((3, 4, 4)), "labels": [1, 2]}, r"has 3 images and labels of the shape \(2,\)"),
        ({"images": np.zeros((2, 3, 4, 4)), "labels": [1, 2]}, r"expected\. Move the channels to the end"),
        (
            {"images": np.full((2, 4, 4), -3.0), "labels": [1, 2]},
            "its pixels go from -3 to -3, which is no usual range",
        ),
        ({"images": np.zeros((2, 0, 4)), "labels": [1, 2]}, "so there are no pixels"),
        ({"x": np.zeros((2, 4, 4)), "y": [1, 2]}, "has no array images; its arrays are x, y"),
    ],
)
def test_arrays_that_are_no_images_are_refused_as_a_file(arrays, message, tmp_path):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(DataError, match=message):
        raise DataError(*problems(tmp_path / "set.npz"))


def test_an_array_with_values_that_are_no_numbers_is_one_bad_row(tmp_path):
    images = np.zeros((2, 4, 4))
    images[1, 0, 0] = np.nan
    np.savez(tmp_path / "set.npz", images=images, labels=["cat", "dog"], id=[7, 8])
    assert problems(tmp_path / "set.npz") == [
        f"{tmp_path}/set.npz:2: its image has pixels that are not finite numbers."
    ]
    assert len(read(tmp_path / "set.npz")[1]) == 1


def test_arrays_by_other_names_and_a_damaged_file(tmp_path):
    np.savez(tmp_path / "set.npz", x=np.zeros((2, 4, 4)), y=["cat", "dog"])
    assert [label for _, label in labelled(tmp_path / "set.npz", columns={"image": "x", "label": "y"})] == [
        "cat",
        "dog",
    ]
    whole = (tmp_path / "set.npz").read_bytes()
    (tmp_path / "set.npz").write_bytes(whole[: len(whole) // 2])
    assert "is damaged, or is not a readable .npz file" in problems(tmp_path / "set.npz")[0]
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"one\.npy: is a single NumPy array without labels"):
        read(tmp_path / "one.npy")


# Predictions


def test_questions_need_no_label(tmp_path):
    write(tmp_path, ["1.png", "2.png"])
    assert [one.messages[0].content for one in questions(tmp_path)] == ["1.png", "2.png"]
    (one,) = questions(tmp_path / "1.png", labels=("cat", "dog"))
    assert decode(one.image, one.where).width == 12
    assert len(one.messages) == 1
    file = lines(tmp_path / "rows.jsonl", [{"photo": "1.png"}, {"photo": "2.png", "label": "of no class"}])
    assert [one.image.source.name for one in questions(file, columns={"image": "photo"})] == ["1.png", "2.png"]


def test_predictions_are_written_with_the_path_of_an_image_and_without_its_bytes(tmp_path):
    held = [{"bytes": picture(), "path": "1.png"}, picture(), np.zeros((2, 2)), "2.png"]
    rows = [{"image": image, "prediction": "cat"} for image in held]
    written = [json.loads(line) for line in file_of(rows, tmp_path / "p.jsonl").splitlines()]
    assert [row["image"] for row in written] == ["1.png", None, None, "2.png"]
    assert file_of(rows, tmp_path / "p.csv").decode().splitlines()[1:] == ["1.png,cat", ",cat", ",cat", "2.png,cat"]


# The hub


def test_a_hub_data_set_of_images_gives_the_bytes_of_its_files(tmp_path, monkeypatch):
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as HubImage

    features = Features({"image": HubImage(), "label": ClassLabel(names=["cat", "dog"])})
    held = {"image": [{"bytes": picture(color), "path": f"{color}.png"} for color in ("red", "blue")], "label": [1, 0]}
    rows = Dataset.from_dict(held, features=features)
    monkeypatch.setattr(hub, "_fetched", lambda *_: (rows, None))
    assert labelled("hub:me/pets") == [("red.png", "dog"), ("blue.png", "cat")]
    _, (first, _) = read("hub:me/pets")
    assert first.image.source == picture("red")
    other = Dataset.from_dict(held | {"label": [0, 0]}, features=features)
    before = content_identity(DataConfig(path="hub:me/pets"))
    monkeypatch.setattr(hub, "_fetched", lambda *_: (other, None))
    assert content_identity(DataConfig(path="hub:me/pets")) != before


# Identity


def test_the_identity_changes_with_each_image_and_its_name(tmp_path):
    folder = write(tmp_path / "pets", ["cat/1.png", "dog/1.png"])
    table = lines(folder / "rows.csv", [])
    table.write_text("image,label\ncat/1.png,cat\ndog/1.png,dog\n")

    def identities():
        return content_identity(DataConfig(path=str(table))), content_identity(DataConfig(path=str(folder / "cat")))

    first = identities()
    assert identities() == first
    (folder / "dog/1.png").write_bytes(picture("blue"))
    second = identities()
    assert (second[0] != first[0], second[1] == first[1]) == (True, True)
    (folder / "cat/1.png").write_bytes(picture("green"))
    third = identities()
    assert all(one != other for one, other in zip(third, second, strict=True))
    (folder / "cat/1.png").rename(folder / "cat/2.png")
    assert identities()[1] != third[1]
