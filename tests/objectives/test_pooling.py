"""What the head of a classifier reads follows the model's folder, and is the same wherever it is computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, pipeline
from typer.testing import CliRunner

import rankwise
from kit.classifiers import encoder_folder, labelled, write_rows
from rankwise.base.inspection import pooling_of
from rankwise.base.pooling import pooled
from rankwise.cli.main import app
from rankwise.config.classification import ClassificationConfig
from rankwise.inference.tuned_model import load_tuned

OLDER = "pooling_mode_mean_tokens", "pooling_mode_cls_token", "pooling_mode_max_tokens", "pooling_mode_lasttoken"
RUN = ("--steps", "12", "--batch-size", "4", "--learning-rate", "0.005", "--rank", "2", "--set", "model.dtype=float32")
TEXTS = ["the film is bright", "the plot is dull and the plot is a plot and the film is cold", "a film is vague"]


def pooling_folder(folder: Path, settings: dict[str, Any] | None) -> Path:
    """With the parts of a sentence-transformers model; without settings its pooling has none."""
    folder.mkdir(exist_ok=True)
    parts = ["Transformer", "Pooling", "Normalize"]
    modules = [
        {"idx": at, "path": f"{at}_{name}" if at else "", "type": f"sentence_transformers.models.{name}"}
        for at, name in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    if settings is not None:
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling/config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pooling")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pooling_folder(encoder_folder(Path("mean-bert")), {"pooling_mode_mean_tokens": True})
        write_rows("rows.jsonl", labelled(24))
        write_rows("apart.jsonl", labelled(9, 24))
        trained("mean", "--held-out", "6")
        trained("own", "--set", "classification.pooling=own")
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


def command(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def trained(run: str, *more: str) -> str:
    result = command("train", "--model", "mean-bert", "--data", "rows.jsonl", "--run", run, *RUN, *more)
    assert result.exit_code == 0, (result.output, result.exception)
    return " ".join(result.stderr.split())


@pytest.mark.parametrize(("settings", "expected"), [
    ({OLDER[0]: True, OLDER[1]: False}, "mean"), ({OLDER[1]: True}, "cls"), ({OLDER[2]: True}, "max"),
    ({OLDER[3]: True}, "own"), ({"pooling_mode": "mean"}, "mean"), ({"pooling_mode": "cls"}, "cls"),
    ({OLDER[0]: True, OLDER[2]: True}, "own"), ({"pooling_mode": "weightedmean"}, "own"), ({}, "own"), (None, "mean"),
])  # fmt: skip
def test_a_sentence_transformers_model_names_its_pooling(tmp_path, settings, expected):
    folder = pooling_folder(tmp_path, settings)
    found, note = pooling_of(folder, ClassificationConfig())
    assert found == expected and (note is None) == (settings is not None and OLDER[3] in settings)
    assert pooling_of(folder, ClassificationConfig(pooling="max")) == ("max", None)


@pytest.mark.parametrize("content", ["", "[1, {}]", '{"a": 1}', '[{"type": "x.Pooling", "path": "../.."}]', None])
def test_any_other_folder_keeps_what_its_own_code_reads(tmp_path, content):
    if content is not None:
        (tmp_path / "modules.json").write_text(content)
    assert pooling_of(tmp_path, ClassificationConfig())[0] == ("mean" if content and "Pooling" in content else "own")


def test_pooled_vectors_are_those_of_sentence_transformers_scaled():
    states, mask = torch.randn(3, 5, 8), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    real = mask[..., None].float()
    theirs = {
        "mean": (states * real).sum(1) / real.sum(1).clamp(min=1e-9),
        "max": states.masked_fill(real == 0, -1e9).max(1).values,
        "cls": states[:, 0],
    }
    for pooling, vectors in theirs.items():
        scaled = (vectors - vectors.mean(1, keepdim=True)) / vectors.std(1, keepdim=True, unbiased=False)
        torch.testing.assert_close(pooled(states, mask, pooling), scaled)


def probabilities(run: Any) -> np.ndarray:
    return np.array([list(one["probabilities"].values()) for one in run.predict(TEXTS)])


def classified(name: str) -> list[Any]:
    tuned = load_tuned(name)
    predicted, _ = tuned.predict([tuned.classifier.inputs.example_of(text, "a text") for text in TEXTS])
    return list(predicted.values())


def test_a_run_reads_the_mean_in_training_in_prediction_and_in_its_readme(here):
    run = rankwise.load_run("mean")
    ours = probabilities(run)
    report = json.loads(Path("runs/mean/data_report.json").read_text())
    assert report["targets"]["pooling"] == "mean"
    assert not any("pooler" in name for name in json.loads(Path("runs/mean/adapter/adapter_config.json").read_text())
                   ["modules_to_save"])  # fmt: skip
    card = Path("runs/mean/adapter/README.md").read_text()
    code = card[card.index("```python") + 9 :]
    code = code[: code.index("```")].replace("path/to/this/folder", "runs/mean/adapter")
    code = code.replace("path/or/name/of/base", "mean-bert").replace("print(", "found.append(")
    for text, expected in zip(TEXTS, ours, strict=True):
        found: list[Any] = []
        exec(code.replace('"A text"', repr(text)), {"found": found})  # noqa: S102  the code of our own README
        np.testing.assert_allclose(found[0].softmax(-1)[0].detach(), expected, atol=1e-5)


def test_the_mean_is_computed_alike_by_both_backends_and_by_hand(here):
    said = trained("eager", "--held-out", "6", "--backend", "eager")
    assert "the head reads the mean of all tokens" in said
    losses = [
        [one["loss"] for one in rankwise.load_run(name).metrics if one["kind"] == "step"] for name in ("mean", "eager")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    run = rankwise.load_run("mean")
    with run.tuned.base():
        ours = probabilities(run)
    assert np.isfinite(ours).all()
    head = run.tuned.model.module.classifier.base_layer
    tokenizer, body = AutoTokenizer.from_pretrained("mean-bert"), AutoModel.from_pretrained("mean-bert").eval()
    given = tokenizer(TEXTS, padding=True, return_tensors="pt")
    real = given["attention_mask"][..., None]
    states = body(**given).last_hidden_state * real
    vectors = F.layer_norm(states.sum(1) / real.sum(1), (32,), eps=1e-12)
    np.testing.assert_allclose(head(vectors).softmax(-1).detach(), ours, atol=1e-5)


@pytest.mark.parametrize(("pooling", "dtype", "allowed"), [
    ("mean", "float32", 1e-4), ("cls", "float32", 1e-4), ("mean", "bfloat16", 0.05), ("mean", "float16", 0.02),
])  # fmt: skip
def test_a_merged_model_computes_the_pooling_in_plain_transformers(here, pooling, dtype, allowed):
    name = f"merged-{pooling}"
    if not Path("runs", name).is_dir():
        trained(name, "--set", f"classification.pooling={pooling}")
    folder = f"{name}-{dtype}"
    result = command("export", name, "--format", "merged", "--to", folder, "--dtype", dtype)
    assert result.exit_code == 0, (result.output, result.exception)
    assert json.loads(Path(folder, "data_report.json").read_text())["targets"]["pooling"] == "own"
    pipe: Any = pipeline("text-classification", model=folder, dtype=torch.float32, batch_size=3)
    theirs = [{one["label"]: one["score"] for one in row} for row in pipe(TEXTS, top_k=2)]
    ours = rankwise.load_run(name).predict(TEXTS)
    for one, other in zip(theirs, ours, strict=True):
        assert all(abs(one[label] - share) < allowed for label, share in other["probabilities"].items())


@pytest.mark.parametrize(("words", "said"), [
    (("export", "max", "--format", "merged", "--to", "x"), "--format peft"),
    (("merge", "mean", "--to", "x"), "Use rankwise export --format merged"),
])  # fmt: skip
def test_what_cannot_hold_the_pooling_says_what_can(here, words, said):
    if not Path("runs/max").is_dir():
        trained("max", "--set", "classification.pooling=max")
    result = command(*words)
    assert result.exit_code != 0 and said in " ".join(result.stderr.split()) and not Path("x").exists()


def test_a_head_that_is_continued_keeps_what_it_reads(here):
    trained("on", "--from", "own")
    assert json.loads(Path("runs/on/data_report.json").read_text())["targets"]["pooling"] == "own"
    words = ("train", "--data", "rows.jsonl", "--run", "no", *RUN[:4], "--from", "own")
    result = command(*words, "--set", "classification.pooling=mean")
    assert result.exit_code == 2 and "the head to go on with reads own" in " ".join(result.stderr.split())


def test_a_report_of_an_earlier_version_means_the_models_own(here):
    path = Path("runs/own/adapter/data_report.json")
    report = json.loads(path.read_text())
    ours = [one.probabilities for one in classified(str(path.parent))]
    del report["targets"]["pooling"]
    folder = Path("earlier")
    folder.mkdir(exist_ok=True)
    for file in path.parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "data_report.json").write_text(json.dumps(report))
    assert [one.probabilities for one in classified("earlier")] == ours
