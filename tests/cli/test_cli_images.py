"""Image classification from training to predictions, for every kind of image model, with tiny random ones.

What concerns one family alone is tested with all of them: its folder in test_vision_families.py, its adapters in
test_vision_adapters.py and test_peft_vision.py, its preprocessing in test_processor.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, pipeline

from kit.command import done, printed, rankwise
from kit.interrupted import whole_and_resumed
from kit.vision_models import TIMM, save_folder
from rankwise.base.loading import load
from rankwise.commands.export import export
from rankwise.commands.train import Trained, train
from rankwise.config.experiment import Experiment
from rankwise.errors import DataError
from rankwise.inference.tuned_model import TunedModel, load_tuned
from rankwise.objectives.registry import objective_of
from rankwise.python.run import load_run
from rankwise.runs.records import Event, WarningMessage

COLOURS = np.array([[230, 30, 30], [30, 230, 30], [30, 30, 230]])
NAMES = ("red", "green", "blue")
KINDS = ("clip", "swin", "efficientnet-same")
"""One of two towers; stages; and convolutions with statistics of batches and padding by the layer."""


def pictures(count: int, side: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images (N, side, side, 3) of three colours, and which."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    noise = generator.normal(0, 40, (count, side, side, 3))
    return np.clip(noise + COLOURS[labels][:, None, None], 0, 255).astype(np.uint8), labels


def write_folder(folder: Path, count: int, seed: int = 0) -> Path:
    for number, (pixels, label) in enumerate(zip(*pictures(count, seed=seed), strict=True)):
        path = folder / NAMES[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def experiment(model: str, run: str, **more: Any) -> Experiment:
    settings: dict[str, Any] = {
        "model": {"name": model, "dtype": "float32"}, "data": {"path": "rows", "held_out": 6}, "run": run,
        "adapter": {"method": "lora", "rank": 2},
        "training": {"steps": 5, "batch_size": 6, "learning_rate": 0.01}, "images": {"augmentation": "crop"},
    }  # fmt: skip
    return Experiment(**settings | more)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_folder(Path("rows"), 24)
        write_folder(Path("others"), 9, seed=1)
        yield folder


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, home: Path) -> Trained:
    save_folder(request.param, Path(request.param))
    return train(experiment(request.param, f"run-{request.param}"))


@pytest.fixture(scope="module")
def tuned(trained: Trained) -> TunedModel:
    """As a later process reads it."""
    return load_tuned(trained.run.folder)


def test_the_loss_falls_and_the_accuracy_is_reported(trained: Trained) -> None:
    results = trained.manifest.results
    assert results is not None
    assert results.validation_loss_before is not None and results.validation_loss_after is not None
    assert results.validation_loss_after < results.validation_loss_before
    summary = trained.summary()
    assert 0 <= summary["validation_accuracy_after"] <= 1 and summary["images_per_second"] > 0


def test_an_adapter_read_from_its_folder_gives_the_same_outputs(trained: Trained, tuned: TunedModel) -> None:
    objective = tuned.objective
    assert torch.equal(outputs(tuned.model.module, objective), outputs(trained.model.module, objective))


def test_the_base_is_untouched_beside_the_adapter(trained: Trained, tuned: TunedModel) -> None:
    objective = tuned.objective
    plain = load(trained.model.config, lambda event: None, objective.kind)
    head = tuple(objective.heads(trained.model))
    body = {name: value for name, value in plain.module.state_dict().items() if not name.startswith(head)}
    with trained.trainable.base():
        ours = outputs(trained.model.module, objective)
    again = load_tuned(trained.run.folder)
    again.trainable.remove()
    own = again.model.module.state_dict()
    assert all(torch.equal(own[name], value) for name, value in body.items())
    assert not torch.equal(ours, outputs(trained.model.module, objective))


def outputs(module: torch.nn.Module, objective: Any) -> torch.Tensor:
    rows = objective.loss.random_rows(module, [1] * 3, torch.Generator().manual_seed(1))
    (batch,) = objective.loss.batches(rows, 10**6)
    with torch.no_grad():
        return objective.loss.predict(module, batch)


def test_a_merged_model_equals_the_adapted_one_and_opens_in_a_pipeline(trained: Trained) -> None:
    name = trained.run.folder.name
    merged = export(name, f"merged-{name}", "merged").merged
    assert merged is not None and merged.logits_difference <= 1e-5
    image = Path("others/red/0.png")
    theirs = {one["label"]: one["score"] for one in pipeline("image-classification", f"merged-{name}")(str(image))}
    done("predict", name, "--data", str(image), "--out", f"{name}.jsonl")
    (row,) = [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()]
    assert theirs.keys() == set(NAMES)
    rounding = 0.02 if trained.model.source.name in TIMM else 1e-4  # timm resizes by another library, a level apart
    assert all(theirs[label] == pytest.approx(row[f"probability_{label}"], abs=rounding) for label in NAMES)


def test_peft_gives_our_outputs(trained: Trained, tuned: TunedModel) -> None:
    objective = tuned.objective
    base = AutoModelForImageClassification.from_pretrained(
        trained.model.source.folder, num_labels=3, ignore_mismatched_sizes=True, dtype=torch.float32
    )
    theirs = PeftModel.from_pretrained(base, trained.result).eval()
    ours, expected = outputs(trained.model.module, objective), outputs(theirs.base_model.model, objective)
    assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-5 * ours.abs().max().item())


# Resuming


def test_a_run_that_goes_on_sees_the_same_augmented_images(home: Path) -> None:
    save_folder("efficientnet", Path("efficientnet"))
    training = {"steps": 6, "batch_size": 5, "learning_rate": 0.01, "checkpoint_steps": 2}
    varied = {"images": {"augmentation": "trivial"}, "training": training}
    whole, resumed = whole_and_resumed(lambda run: experiment("efficientnet", run, **varied), 3)
    assert whole == resumed


def test_augmentation_changes_what_is_learned(home: Path) -> None:
    save_folder("vit", Path("vit"))
    steps = {"steps": 2, "batch_size": 6, "learning_rate": 0.01}
    results = [
        train(experiment("vit", f"varied-{how}", images={"augmentation": how}, training=steps)).manifest.results
        for how in ("none", "flip", "crop", "trivial")
    ]
    assert len({result.loss for result in results if result is not None}) == 4


def test_how_a_step_is_cut_into_batches_changes_no_augmented_image(home: Path) -> None:
    save_folder("vit", Path("vit"))
    folders = []
    for tokens in (4, 10_000):
        settings = {"steps": 2, "batch_size": 6, "learning_rate": 0.01, "max_batch_tokens": tokens}
        folders.append(train(experiment("vit", f"cut-{tokens}", training=settings)).result)
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6) for name in ours)


# The commands


def test_the_objective_follows_from_the_model_and_the_json_is_whole(home: Path) -> None:
    save_folder("vit", Path("vit"))
    found = done(
        "train", "--model", "vit", "--data", "rows", "--run", "by-command", "--held-out", "6", "--steps", "3", "--json"
    )
    facts = json.loads(found.stdout)
    assert "18 training images; 6 validation images" in found.stderr and "tokens" not in found.stderr
    assert "and cut to 32 x 32 pixels" in found.stderr
    assert facts["validation_accuracy_after"] is not None and facts["images_per_second"] > 0
    settings = json.loads(Path("runs/by-command/config.json").read_text())
    assert settings["objective"] == "image-classification"
    metrics = printed("evaluate", "by-command", "--data", "others")["metrics"]
    assert {"accuracy", "balanced_accuracy", "f1"} <= metrics.keys()
    chat = rankwise("chat", "by-command")
    assert chat.exit_code != 0 and "rankwise predict" in chat.output


@pytest.mark.parametrize("words", [
    ("--objective", "causal-lm"), ("--objective", "sequence-classification"), ("--max-length", "100"),
    ("--set", "data.packing=true"), ("--set", "images.size=10"), ("--augmentation", "rotate"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused_in_one_sentence(home: Path, words: tuple[str, ...]) -> None:
    save_folder("vit", Path("vit"))
    found = rankwise("train", "--model", "vit", "--data", "rows", "--run", "refused", *words)
    assert found.exit_code == 2 and found.stderr.splitlines()[-1].startswith("rankwise: "), found.output
    assert not Path("runs/refused").exists()


def test_a_prompt_for_images_is_refused_as_a_setting_and_not_row_by_row(home: Path) -> None:
    save_folder("vit", Path("vit"))
    words = ("--prompt", "{image}", "--completion", "{label}")
    found = rankwise("train", "--model", "vit", "--data", "rows", "--run", "refused", *words)
    assert found.exit_code == 2
    assert [line.partition("the setting ")[2].split()[0] for line in found.stderr.splitlines()[-2:]] == [
        "data.prompt", "data.completion"
    ]  # fmt: skip


def test_another_size_of_images_is_trained_at_and_used_for_predictions(home: Path) -> None:
    """By a model that has a weight for each place in an image."""
    save_folder("clip", Path("clip"))
    one_step = {"steps": 1, "batch_size": 3, "learning_rate": 0.01}
    result = train(experiment("clip", "larger", images={"size": 48}, training=one_step))
    assert result.model.processing is not None and result.model.processing.size == 48
    tuned = load_tuned(result.run.folder)
    assert outputs(tuned.model.module, tuned.objective).shape == (3, 3)
    assert torch.equal(outputs(tuned.model.module, tuned.objective), outputs(result.model.module, tuned.objective))


@pytest.mark.parametrize(("family", "has_patches"), [("clip", True), ("swin", False)])
def test_pixels_that_no_patch_covers_are_said(home: Path, family: str, has_patches: bool) -> None:
    save_folder(family, Path(family))
    odd, even = said_at(family, 45), said_at(family, 48)
    assert ("never sees the last 5 columns" in odd) == ("--image-size 40 or 48" in odd) == has_patches, odd
    assert "never sees" not in even


def said_at(family: str, size: int) -> str:
    """What a training of images of this size is told as its model is loaded."""
    events: list[Event] = []
    of_size = experiment(family, "never", images={"size": size})
    kind = objective_of("image-classification", of_size.rows, events.append).kind
    load(of_size.model, events.append, kind)
    return " ".join(event.text for event in events if isinstance(event, WarningMessage))


def test_images_are_classified_from_python_as_by_the_command(home: Path) -> None:
    save_folder("vit", Path("vit"))
    train(experiment("vit", "from-python"))
    run, path = load_run("from-python"), "others/red/0.png"
    picture = Image.open(path)
    (expected,) = run.predict([path])
    for item in (picture, np.asarray(picture), Path(path).read_bytes(), Path(path)):
        assert run.predict([item]) == [expected]
    assert run.predict([]) == []
    done("predict", "from-python", "--data", path, "--out", "from-python.jsonl")
    row = json.loads(Path("from-python.jsonl").read_text())
    assert row["prediction"] == expected["label"]
    assert row["probability_red"] == pytest.approx(expected["probabilities"]["red"], abs=1e-6)


@pytest.mark.parametrize(("items", "words"), [
    ("others/red/0.png", "Give a list"), ([3, "hello"], "item 1 of the images to classify is"),
    (["nowhere.png"], "nowhere.png cannot be read"), ([np.zeros((3, 8, 8))], "the shape (3, 8, 8)"),
    ([b"\x89PNG nothing"], "item 0 of the images to classify: is no image"),
])  # fmt: skip
def test_what_is_no_image_is_refused_from_python(home: Path, items: Any, words: str) -> None:
    if not Path("runs/refusing").exists():
        save_folder("vit", Path("vit"))
        train(experiment("vit", "refusing"))
    with pytest.raises(DataError) as caught:
        load_run("refusing").predict(items)
    assert words in str(caught.value)


def test_full_fine_tuning_writes_a_whole_model_with_its_preprocessing(home: Path) -> None:
    save_folder("resnet", Path("resnet"))
    result = train(experiment("resnet", "whole-model", adapter={"method": "full"}))
    tuned = load_tuned(result.run.folder)
    assert torch.equal(outputs(tuned.model.module, tuned.objective), outputs(result.model.module, tuned.objective))
    assert {one["label"] for one in pipeline("image-classification", str(result.result))("others/red/0.png")} == set(
        NAMES
    )


def test_the_head_alone_is_a_linear_probe_over_frozen_features(home: Path) -> None:
    save_folder("dinov2", Path("dinov2"))
    settings = {"steps": 8, "batch_size": 6, "learning_rate": 0.02}
    result = train(experiment("dinov2", "probe", adapter={"method": "head"}, training=settings, images={}))
    tensors = load_file(result.result / "adapter_model.safetensors")
    assert {name.rsplit(".", 1)[0] for name in tensors} == {"base_model.model.classifier"}
    eager = train(experiment("dinov2", "probe-eager", adapter={"method": "head"}, images={},
                             training=settings | {"backend": "eager"}))  # fmt: skip
    assert result.manifest.backend == "fused" and eager.manifest.backend == "eager"
    theirs = load_file(eager.result / "adapter_model.safetensors")
    assert all(torch.allclose(tensors[name], theirs[name], rtol=1e-4, atol=1e-5) for name in tensors)


def test_a_check_without_a_model_finds_validation_images_of_an_unknown_class(home: Path) -> None:
    write_folder(Path("unknown"), 3)
    Path("unknown/red").rename("unknown/purple")
    found = rankwise("data", "check", "rows", "--validation-data", "unknown")
    assert found.exit_code == 2 and "'purple'" in found.output and "unknown/purple/0.png" in found.output
