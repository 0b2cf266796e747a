"""The data report of images: every bad file is named, every copy is found, and none is on both sides of a hold-out."""

from __future__ import annotations

import io
import json
import os
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kit.command import rankwise
from rankwise.commands.data import count_only
from rankwise.config.data import DataConfig
from rankwise.rows.report.duplicates import ImageIndex
from rankwise.rows.sources import open_source
from rankwise.rows.text.example import ImageRecord
from rankwise.runs.data_report import DataReport
from rankwise.runs.records import silent


def noise(seed, size=(40, 32)):
    """A picture that has structure and is unlike those of other seeds."""
    small = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def file_of(picture, kind="PNG", **how):
    written = io.BytesIO()
    picture.save(written, kind, **how)
    return written.getvalue()


def folder_of(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else file_of(content))
    return folder


def report(path, **settings):
    return count_only(DataConfig(path=str(path), **settings), silent)


def pets(tmp_path, **more):
    """Six images of two classes, and others."""
    files = {f"{kind}/{number}.png": noise(10 * number + len(kind)) for kind in ("cat", "mouse") for number in range(3)}
    return folder_of(tmp_path / "pets", files | more)


# Bad files


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return file_of(noise(51), "JPEG", exif=exif)


WHOLE = file_of(noise(50))
FRAMES = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 200)]
BAD = {
    "truncated": (WHOLE[: len(WHOLE) // 2], "cannot be decoded as an image"),
    "animated": (file_of(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "is an animation of 2 frames"),
    "tiny": (file_of(Image.new("RGB", (1, 1))), "has 1 x 1 pixels; each side must have at least 4"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "it is PostScript, which is a program and never run"),
}
CONVERTED = {
    "CMYK": (file_of(noise(52).convert("CMYK"), "JPEG"), "converted from CMYK"),
    "alpha": (file_of(Image.merge("RGBA", (*noise(56).split(), noise(57).convert("L")))),
              "laid over white where they are transparent"),
    "turned": (turned(), "turned upright (EXIF orientation)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_stops_the_training_and_is_left_out_only_if_asked(kind, tmp_path):
    content, why = BAD[kind]
    folder = pets(tmp_path, **{"cat/bad.png": content})
    stopped = report(folder)
    (problem,) = stopped.fatal
    assert problem.startswith(f"{folder}/cat/bad.png: ")
    assert why in problem
    assert stopped.advice == ("1 of 7 rows cannot be used. To leave them out, use --on-bad-row skip.",)
    skipping = report(folder, on_bad_row="skip")
    assert (skipping.rows, skipping.used, skipping.fatal) == (7, 6, ())
    assert skipping.skipped_why == {"cannot be used": 1}
    assert [row.where for row in skipping.skipped_rows] == [f"{folder}/cat/bad.png"]
    assert skipping.images.images == 6
    assert skipping.labels == {"cat": 3, "mouse": 3}


@pytest.mark.parametrize("kind", CONVERTED)
def test_a_converted_image_is_named_and_trained_on(kind, tmp_path):
    content, what = CONVERTED[kind]
    name = "cat/bad.jpg" if kind in ("CMYK", "turned") else "cat/bad.png"
    facts = report(pets(tmp_path, **{name: content}))
    assert (facts.used, facts.fatal, facts.images.images) == (7, (), 7)
    (change,) = facts.images.changes
    assert (change.what, change.images, change.first) == (what, 1, (f"{tmp_path}/pets/{name}",))


def test_one_class_only_is_refused(tmp_path):
    folder = folder_of(tmp_path / "pets", {f"cat/{number}.png": noise(number) for number in range(3)})
    refused = rankwise("data", "check", str(folder))
    assert refused.exit_code == 2
    assert f"{folder}/cat/0.png: this and all other rows have the label 'cat', so there is nothing" in refused.output


def test_passed_over_files_and_empty_folders_are_in_the_report(tmp_path):
    folder = pets(tmp_path, **{f"notes{number}.txt": b"" for number in range(7)})
    (folder / "bird").mkdir()
    facts = report(folder)
    assert facts.images.passed_over == 7
    assert facts.warnings == (f"{folder}/bird: contains no image",)
    lines = {label: text for label, text, _ in facts.images.lines()}
    assert lines["no images"] == (
        "7 files are passed over: notes0.txt, notes1.txt, notes2.txt, notes3.txt, notes4.txt and 2 more"
    )
    assert lines["image sizes"] == "all 40 x 32"


def test_images_that_the_metadata_does_not_name_are_a_warning(tmp_path):
    folder = pets(tmp_path)
    rows = [{"file_name": f"cat/{number}.png", "label": "ab"[number % 2]} for number in range(3)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = report(folder)
    assert facts.used == 3
    assert facts.warnings == (
        f"{folder}/metadata.jsonl: no usable row names these images of its folder: mouse/0.png, mouse/1.png, "
        "mouse/2.png",
    )


def test_names_of_files_are_no_texts(tmp_path):
    facts = report(pets(tmp_path, **{"cat/[INST] a.png": noise(70), "mouse/[INST] a.png": noise(71)}))
    assert (facts.unknown_special_tokens, facts.warnings) == ({}, ())


def test_a_name_that_is_no_text_is_a_bad_row(tmp_path):
    folder = pets(tmp_path, **{"cat/x.png": noise(80), "cat/x.txt": b""})
    for suffix in (b"png", b"txt"):
        path = os.fsencode(folder / "cat")
        os.rename(path + b"/x." + suffix, path + b"/\xff." + suffix)
    (problem,) = report(folder).fatal
    assert problem == f"'{folder}/cat/\\udcff.png': its name is not UTF-8 text. Rename it."
    facts = DataReport.model_validate_json(report(folder, on_bad_row="skip").model_dump_json())
    assert facts.images.passed_over_files == ("cat/\\udcff.txt",)


def test_sizes_and_shapes(tmp_path):
    sizes = [(40, 20), (40, 20), (10, 30), (8, 8), (100, 50)]
    facts = report(folder_of(tmp_path, {f"a/{n}.png": noise(n, size) for n, size in enumerate(sizes)})).images
    assert (facts.smallest, facts.median, facts.largest) == ((8, 8), (40, 20), (100, 50))
    assert (facts.landscape, facts.portrait, facts.square) == (3, 1, 1)
    assert facts.lines()[0][1] == ("smallest 8 x 8, median 40 x 20, largest 100 x 50; 60% wide, 20% high, 20% square")


# Copies


def test_copies_are_counted_and_those_with_two_labels_named(tmp_path):
    folder = pets(tmp_path, **{"mouse/copy.bmp": file_of(noise(13), "BMP"), "cat/near.png": noise(3, (80, 64))})
    facts = report(folder)
    pair = f"{folder}/mouse/copy.bmp (mouse) and {folder}/cat/1.png (cat)"
    near = f"{folder}/cat/near.png (cat) and {folder}/cat/0.png (cat)"
    assert (facts.duplicates, facts.near_duplicates, facts.images.two_labels) == (1, 1, 1)
    assert facts.warnings == (
        f"images with the same pixels as an earlier image, but another label: 1, such as {pair}",
        f"images with the same pixels as an earlier image: 1, such as {pair}",
        f"images that look nearly the same as an earlier image: 1, such as {near}",
    )
    assert [copy.describe() for copy in facts.images.copies] == [pair]


def test_images_of_one_colour_are_no_near_copies(tmp_path):
    colors = {f"{color}/1.png": Image.new("RGB", (8, 8), color) for color in ("red", "blue", "white", "black")}
    assert report(folder_of(tmp_path, colors)).warnings == ()


def test_validation_images_that_are_training_images_are_named(tmp_path):
    folder = pets(tmp_path)
    apart = folder_of(tmp_path / "apart", {"cat/1.bmp": file_of(noise(13), "BMP"), "cat/2.png": noise(99)})
    facts = report(folder, validation={"path": str(apart)})
    assert (facts.overlap.exact, facts.overlap.near, facts.overlap.of) == (1, 0, 2)
    assert facts.warnings == (
        "validation images that are also in the training rows: 1 exactly and 0 nearly, of 2, such as "
        f"{apart}/cat/1.bmp (cat) and {folder}/cat/1.png (cat)",
    )


@pytest.mark.parametrize("seed", range(6))
def test_copies_stay_on_one_side_of_the_hold_out(seed, tmp_path):
    files = {f"{kind}/{n}_{copy}.png": noise(n) for n in range(10) for copy in range(2) for kind in ("a", "b")}
    facts = report(folder_of(tmp_path, files), held_out=8, seed=seed)
    assert facts.hold_out.rows == 8
    assert (facts.overlap.exact, facts.overlap.of) == (0, 8)


# The index


records = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 3)).map(
        lambda pair: ImageRecord(8, 8, (), bytes(pair), pair[0] | 0b111 << 8 * pair[1])
    ),
    max_size=30,
)


def repeats_of(images):
    found = ImageIndex(images).repeats()
    return [dict(zip(*map(np.ndarray.tolist, pairs), strict=True)) for pairs in (found.exact, found.near)]


def bits(one, other):
    return (one.perceptual ^ other.perceptual).bit_count()


@settings(max_examples=100, deadline=None)
@given(records)
def test_the_index_finds_what_comparing_all_pairs_finds(images):
    exact, near_to = repeats_of(images)
    first = [next(n for n, other in enumerate(images) if other.content == image.content) for image in images]
    assert exact == {n: origin for n, origin in enumerate(first) if origin != n}
    distinct = [n for n, origin in enumerate(first) if origin == n]
    near = {n for m, n in combinations(distinct, 2) if bits(images[m], images[n]) <= 3}
    assert near_to.keys() == near
    assert all(bits(images[n], images[m]) <= 3 and m < n for n, m in near_to.items())


@settings(max_examples=100, deadline=None)
@given(records, records)
def test_the_overlap_is_what_comparing_all_pairs_finds(mine, theirs):
    found = ImageIndex(mine).overlap(np.arange(len(mine)), ImageIndex(theirs), np.arange(len(theirs)))
    exact = {n for n, image in enumerate(mine) if any(image.content == other.content for other in theirs)}
    near = {n for n, image in enumerate(mine) if any(bits(image, other) <= 3 for other in theirs)} - exact
    assert ({*found.exact[0].tolist()}, {*found.near[0].tolist()}) == (exact, near)


def test_every_pair_that_differs_in_three_bits_agrees_in_a_band():
    base = 0x0123456789ABCDEF
    for places in [(0, 16, 32), (1, 2, 3), (16, 32, 48), (15, 31, 63), (0, 20, 63)]:
        other = base
        for place in places:
            other ^= 1 << place
        pair = [ImageRecord(8, 8, (), bytes([n]), value) for n, value in enumerate((base, other))]
        assert repeats_of(pair)[1] == {1: 0}
        apart = [pair[0], ImageRecord(8, 8, (), b"x", other ^ 1 << 40)]
        assert repeats_of(apart)[1] == {}


def test_a_hundred_thousand_images_are_no_burden():
    hashes = np.random.default_rng(0).integers(0, 2**63, 100_000, dtype=np.uint64).tolist()
    hashes[7], hashes[99_999] = hashes[3] ^ 0b101, hashes[50_000]
    images = [ImageRecord(8, 8, (), n.to_bytes(4), value) for n, value in enumerate(hashes)]
    assert repeats_of(images)[1] == {7: 3, 99_999: 50_000}  # a comparison of all pairs would take minutes


# From the command line, and large files


def test_the_report_is_printed(tmp_path):
    folder = pets(tmp_path, **{"cat/bad.jpg": CONVERTED["CMYK"][0]})
    printed = rankwise("data", "check", str(folder), "--held-out", "2")
    assert printed.exit_code == 0, printed.output
    lines = {name: text for name, _, text in (line.partition("  ") for line in printed.output.splitlines())}
    assert lines["image sizes"].strip() == "all 40 x 32" and lines["duplicate images"].strip() == "0 exact, 0 near"
    assert lines["images"].strip() == f"1 converted from CMYK, such as {folder}/cat/bad.jpg"
    assert "tokens" not in printed.output


def test_drawn_images_are_those_that_reading_all_would_draw(tmp_path):
    rows = [{"image": file_of(noise(n)), "label": n} for n in range(30)]
    rows[4]["image"] = b"no image"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "paths").mkdir()
    for n, row in enumerate(rows):
        (tmp_path / "paths" / f"{n}.png").write_bytes(row["image"])
    lines = [json.dumps({"image": f"paths/{n}.png", "label": n}) for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))

    def drawn(name):
        spec = DataConfig(path=str(tmp_path / name), rows=10, seed=3)
        reading = open_source(spec, spec.all_sources[0])
        return [example.messages[1].content for chunk in reading.chunks() for row in chunk for example in row]

    assert len(drawn("rows.parquet")) == 10
    assert drawn("rows.parquet") == drawn("rows.jsonl")


def test_names_of_classes_beside_images_in_parquet_are_used(tmp_path):
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pa.Table.from_pylist([{"image": {"bytes": file_of(noise(n)), "path": None}, "label": n} for n in (1, 0)])
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "rows.parquet")
    assert report(tmp_path / "rows.parquet").labels == {"dog": 1, "cat": 1}
    assert report(tmp_path / "rows.parquet", labels=("x", "y")).labels == {"y": 1, "x": 1}


def test_progress_counts_images(tmp_path):
    heard = []
    for number in range(200):
        (tmp_path / "a").mkdir(exist_ok=True)
        noise(number, (4, 4)).save(tmp_path / "a" / f"{number}.png")
    count_only(DataConfig(path=str(tmp_path)), heard.append)
    done = [(event.done, event.total) for event in heard if getattr(event, "what", "") == "Reading and encoding"]
    assert done and all(count <= 200 and total == pytest.approx(200, rel=0.05) for count, total in done)
