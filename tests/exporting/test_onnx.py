"""Classifiers as ONNX answer as ours in onnxruntime, and where node has its packages in transformers.js; and what is
wrong in their preprocessing is found, with the row that shows it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as transforms

from kit import planted
from kit.command import printed, rankwise
from rankwise.config.images import ImageProcessing
from rankwise.exporting import verification
from rankwise.exporting.engine_process import ask
from rankwise.exporting.reference import open_for_export
from rankwise.exporting.verification import Export, Verifying, verify
from rankwise.methods.artifact import open_artifact
from rankwise.objectives.image_classification.head import ImageHead
from rankwise.objectives.predictions import Longest
from rankwise.rows.images.processor import cropped, pixels_of
from rankwise.runs.records import silent

onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
NODE = Path(__file__).parents[2] / ".venv-engines-transformers-js" / "bin" / "python"
RUNS = ("films", "several", "numbers", "tags", "pictures")


@pytest.fixture(scope="module")
def home(library, tmp_path_factory):
    folder = library.lay_out(tmp_path_factory.mktemp("onnx") / "home", *RUNS, "lora")
    with (folder / "capitals.jsonl").open("w") as file:
        for word in ("Bright", "Dull", "Warm"):
            file.write(json.dumps({"text": f"The film is {word}", "label": "good"}) + "\n")
    return folder


@pytest.fixture(autouse=True)
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setattr(verification, "ask", planted.ask_here)
    monkeypatch.setenv("RANKWISE_ENGINES", sys.executable)


@pytest.fixture(scope="module")
def exported(home, tmp_path_factory):
    """What an export of a run printed, and its folder; each is exported once."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def of(run: str):
        return printed("export", run, "--to", folder / run, "--format", "onnx"), folder / run

    return of


def verdict(
    run: str, folder: Path, engine: str = "onnxruntime", python: str | Path = sys.executable, rows: str | None = None
):
    how = Verifying("yes", (python,), rows)
    verdicts = verify(open_artifact(run), Export(str(folder), "onnx"), how, silent).verdicts
    return next(one for one in verdicts if one.engine == engine)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_a_classifier_arrives(exported, run):
    facts, folder = exported(run)
    verified = facts["engines"]["onnxruntime"]
    assert verified["status"] == "right" and verified["questions"] == verified["answers_equal"] >= 4
    assert verified["max_difference"] <= 1e-5 and verified["milliseconds"] > 0, verified
    assert facts["bytes"] == (folder / "onnx" / "model.onnx").stat().st_size


@pytest.mark.slow
def test_a_graph_of_images_computes_in_float32(exported):
    """A browser has no operations for more bits."""
    graph = onnx.load(exported("pictures")[1] / "onnx" / "model.onnx").graph
    kinds = {one.data_type for one in graph.initializer}
    kinds |= {one.i for node in graph.node for one in node.attribute if node.op_type == "Cast" and one.name == "to"}
    assert onnx.TensorProto.FLOAT in kinds and onnx.TensorProto.DOUBLE not in kinds


@pytest.mark.slow
def test_rows_of_one_batch_are_padded_and_none_changes_another(exported):
    _, folder = exported("films")
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx")
    ids = np.array([[2, 5, 3, 0, 0, 0], [2, 6, 7, 8, 9, 3]])
    given = {"input_ids": ids, "attention_mask": np.sign(ids), "token_type_ids": np.zeros_like(ids)}
    (both,) = session.run(None, given)
    (alone,) = session.run(None, {name: rows[:1, :3] for name, rows in given.items()})
    np.testing.assert_allclose(both[:1], alone, atol=1e-6)


def changed(folder: Path, to: Path, file: str, change) -> Path:
    """A copy in which a file of JSON says something else."""
    shutil.copytree(folder, to)
    value = json.loads((to / file).read_text(encoding="utf-8"))
    change(value)
    (to / file).write_text(json.dumps(value), encoding="utf-8")
    return to


TOKENIZER = {
    "letters of another case": (lambda all: all.update(normalizer={"type": "Lowercase"}), "capitals.jsonl:1"),
    "texts are cut too early": (lambda all: all["truncation"].update(max_length=4), "capitals.jsonl:1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", TOKENIZER)
def test_a_tokenizer_that_reads_otherwise_is_found_with_its_row(exported, tmp_path, fault):
    change, row = TOKENIZER[fault]
    folder = changed(exported("films")[1], tmp_path / "out", "tokenizer.json", change)
    found = verdict("films", folder, rows="capitals.jsonl")
    assert found.status == "wrong" and "other token ids for 3 of 3 rows" in found.why, found
    assert f'{row}: "The film is Bright"' in found.why and found.figures.prompts_equal == 0
    right = verdict("films", exported("films")[1], rows="capitals.jsonl")
    assert right.status == "right" and right.figures.prompts_equal == 3


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["values up to 255", "blue before red"])
def test_a_graph_that_prepares_images_otherwise_leaves_nothing(tmp_path, monkeypatch, fault):
    whole = ImageHead.graph

    def other(self, model, limit):
        if fault == "values up to 255":
            loss = replace(self.loss, processing=self.loss.processing.model_copy(update={"scale": 1.0}))
            return whole(replace(self, loss=loss), model, limit)
        graph = whole(self, model, limit)
        return replace(graph, logits=lambda images: graph.logits(images.flip(1)))

    monkeypatch.setattr(ImageHead, "graph", other)
    result = rankwise("export", "pictures", "--to", tmp_path / "out", "--format", "onnx")
    assert result.exit_code == 1 and "outputs differ by up to" in result.stderr, result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "size"), [(36, 32), ((40, 60), 32), (32, 32)])
@pytest.mark.parametrize(("height", "width"), [(20, 33), (32, 32), (257, 190), (41, 600)])
def test_the_graph_sees_the_pixels_of_training(mode, resize, size, height, width):
    pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    processing = ImageProcessing(size=size, resize=resize, interpolation=mode, mean=(0, 0, 0), std=(1, 1, 1))
    ours = pixels_of(transforms.to_pil_image(pixels), processing)
    graph = cropped(pixels[None].float(), processing)[0].permute(1, 2, 0)
    apart = np.abs(graph.numpy() - ours.astype(np.float32))
    assert apart.max() <= 1 and (apart > 0).mean() < 2e-3, (apart.max(), (apart > 0).mean())


def test_a_model_that_writes_text_is_refused(tmp_path):
    result = rankwise("export", "lora", "--to", tmp_path / "out", "--format", "onnx")
    assert result.exit_code == 2 and "--format onnx is for classifiers" in result.stderr, result.output
    dtype = rankwise("export", "films", "--to", tmp_path / "out", "--format", "onnx", "--dtype", "float16")
    assert dtype.exit_code == 2 and "onnx is written in float32" in dtype.stderr, dtype.output


PIPELINES = """
const { createRequire } = require("node:module");
const { pipeline } = createRequire(process.argv[1] + "/package.json")("@huggingface/transformers");
(async () => {
    const ask = await pipeline(process.argv[2], process.argv[3]);
    console.log(JSON.stringify(await ask(process.argv[4], { top_k: null })));
})();
"""


@pytest.mark.slow
@pytest.mark.skipif(not NODE.is_file(), reason="make engines installs the packages of node")
class TestUnderNode:
    @pytest.fixture(autouse=True)
    def in_its_own_process(self, monkeypatch):
        monkeypatch.setattr(verification, "ask", ask)

    @pytest.mark.parametrize("run", RUNS)
    def test_a_classifier_arrives(self, exported, run):
        found = verdict(run, exported(run)[1], "transformers.js", NODE)
        assert found.status == "right" and found.figures.max_difference <= 1e-5 and found.figures.milliseconds, found

    @pytest.mark.parametrize(
        ("run", "file", "fault", "why"),
        [
            ("films", "tokenizer_config.json", {"model_max_length": 4}, 'rows, such as films.jsonl:'),
            ("pictures", "preprocessor_config.json", {"do_flip_channel_order": True}, "outputs differ by up to"),
            ("pictures", "preprocessor_config.json", {"do_rescale": True}, "outputs differ by up to"),
        ],
    )  # fmt: skip
    def test_a_file_that_prepares_rows_otherwise_is_found(self, exported, tmp_path, run, file, fault, why):
        folder = changed(exported(run)[1], tmp_path / "out", file, lambda all: all.update(fault))
        found = verdict(run, folder, "transformers.js", NODE)
        assert found.status == "wrong" and why in found.why, found

    def test_the_pipeline_gives_the_answers_of_predict_also_to_a_text_that_is_too_long(self, exported, home):
        text = "the film is bright and the plot is " * 20
        home_of_node = next(NODE.parents[1].glob("lib/*/site-packages/transformers_js"))
        words = ["node", "-e", PIPELINES, home_of_node, "text-classification", exported("films")[1], text]
        printed = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True).stdout
        shares = {one["label"]: one["score"] for one in json.loads(printed)}
        tuned = open_for_export(open_artifact("films"))
        classifier, limit = tuned.classifier, Longest(tuned.longest.tokens, cuts=True)
        (ours,) = classifier.predictions(tuned.model, [classifier.inputs.example_of(text, "a text")], limit)[0].values()
        assert shares == pytest.approx(ours.probabilities, abs=1e-5)
