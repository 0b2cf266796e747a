"""A planned classifier of images is the one that training builds: its parameters, operations and saved activations."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageClassification
from typer.testing import CliRunner

from kit.planned_shapes import llama
from kit.vision_models import FAMILIES, LABELS, SIZE, save_folder
from rankwise.adapters.set import AdapterSet
from rankwise.base.loading import load
from rankwise.base.timm_models import head_modules
from rankwise.cli.main import app
from rankwise.cli.plan_text import lines_of
from rankwise.config.adapters import AdaLoraConfig, FullConfig, HeadConfig, LoraConfig
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Planned
from rankwise.config.images import ImageProcessing, patches_of
from rankwise.config.models import ModelConfig
from rankwise.config.training import TrainingConfig
from rankwise.errors import ConfigError, ModelError
from rankwise.forward.activation_memory import saved_bytes
from rankwise.forward.encoders import FusedEncoder, has_encoder_kernels
from rankwise.forward.model_shape import classify, shape_of_config
from rankwise.forward.plan import base_of, plan, side_of
from rankwise.methods.inject import add_layers
from rankwise.methods.method import Setup
from rankwise.methods.registry import method_of
from rankwise.objectives.objective import Facts
from rankwise.objectives.registry import objective_named
from rankwise.planning.batches import AtOnce
from rankwise.planning.devices import Device
from rankwise.planning.forecast import Forecast, forecast, form_of
from rankwise.planning.operations import Load, Operations
from rankwise.planning.parameters import parameters_of
from rankwise.planning.plan import Plan
from rankwise.planning.rows import images_of
from rankwise.planning.shape import ModelShape, NewHead, shape_from_json, shape_to_json
from rankwise.planning.tasks import OF_IMAGES
from rankwise.planning.time import OF_IMAGES as EFFICIENCIES
from rankwise.planning.time import speed_of
from rankwise.runs.records import silent
from rankwise.runs.row_facts import TargetFacts
from rankwise.system.files import write_json
from rankwise.system.foreign_json import read_json
from rankwise.training.probe import probe

CLASSES = TargetFacts(classes=LABELS, counts=(1, 1, 1))
PROCESSING = ImageProcessing(size=SIZE, resize=SIZE, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
PADDED = {("efficientnet-same", method) for method in ("lora", "adalora", "conv")}
"""timm pads the inputs of these convolutions for the layer, and adapters pad them again, which is not planned."""
GROUPED = ("convnext", "efficientnet", "efficientnet-same")
"""Families with grouped convolutions, whose backward pass torch counts as if they had one group."""
CONVOLVED = ("convnext", "resnet", "efficientnet", "efficientnet-same")
METHODS = {
    "lora": LoraConfig(rank=2), "adalora": AdaLoraConfig(budget="2"), "head": HeadConfig(), "full": FullConfig(),
    "conv": LoraConfig(rank=2, targets=("all-conv",)),
}  # fmt: skip
PROCESSOR = Device("here", "processor", 10**10, 0, None, 1e11, "a test")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        save_folder(family, home / family)
    return home


@pytest.fixture(scope="module")
def shape_with_head(folders):
    """As a plan builds it, once for all of them."""

    @cache
    def shape(family: str, side: int = SIZE) -> ModelShape:
        return base_of(str(folders / family)).shape(NewHead(len(LABELS), image=side))

    return shape


def loaded(folder: Path, method: str, dtype: str = "float32"):
    """The model as training loads it, with the objective and what learns."""
    objective = objective_named("image-classification", Facts(CLASSES, PROCESSING))
    model = load(ModelConfig(name=str(folder), dtype=dtype), silent, objective.kind)
    setup = Setup(TrainingConfig(steps=10), 10, heads=objective.heads(model))
    return model.module, objective, method_of(METHODS[method]).attach(model, setup)


EVERY_METHOD = ("vit", "swin", "resnet", "efficientnet-same")
CASES = [
    (family, method) for family in FAMILIES for method in METHODS
    if (method != "conv" or family in CONVOLVED) and (method in ("lora", "conv") or family in EVERY_METHOD)
]  # fmt: skip
"""With LoRA each family, and with the other methods a family of each kind."""


@pytest.mark.parametrize(("family", "method"), [case for case in CASES if case[1] not in ("full", "head")])
def test_what_trains_is_what_training_attaches(folders, shape_with_head, family, method):
    shape, spec = shape_with_head(family), METHODS[method]
    module = AutoModelForImageClassification.from_pretrained(folders / family, num_labels=len(LABELS))
    total = sum(one.numel() for one in module.parameters())
    adapters = AdapterSet(module)
    adapters.add_heads(head_modules(module, images=True))
    add_layers(adapters, spec)
    counted = parameters_of(shape, spec)
    assert counted.total == shape.parameters == total
    assert counted.trainable == sum(one.numel() for one in adapters.parameters())
    assert [one.layer.path for one in counted.adapted] == list(adapters.layers)
    assert shape_from_json(json.loads(json.dumps(shape_to_json(shape))), shape.name) == shape


def activations(shape: ModelShape, spec: Any, dtype: str, count: int) -> float:
    amount = AtOnce(count * shape.patches, count, shape.patches)
    return replace(forecast_of(shape, spec, dtype, amount), form="plain").saved


def forecast_of(shape: ModelShape, spec: Any, dtype: str, amount: AtOnce) -> Forecast:
    config = Planned.model_validate({"model": {"name": "m", "dtype": dtype}}).model_copy(update={"adapter": spec})
    return forecast(config, shape, PROCESSOR, amount)


def kept(module, objective, patches: int) -> list[int]:
    """Bytes that autograd saves of three images and of eight."""
    found = []
    for count in (3, 8):
        rows = objective.loss.random_rows(module, [patches] * count, torch.Generator().manual_seed(0))
        (batch,) = objective.loss.batches(rows, 10**6)
        found.append(saved_bytes(lambda batch: objective.loss(module, batch), batch, module))
    return found


@pytest.mark.parametrize(("family", "method"), [case for case in CASES if case[1] != "adalora" or case[0] == "vit"])
def test_images_keep_what_the_plan_says(folders, shape_with_head, family, method):
    shape = shape_with_head(family)
    for dtype in ("float32", "bfloat16") if method in ("lora", "conv") else ("float32",):
        module, objective, trainable = loaded(folders / family, method, dtype)
        found = kept(module, objective, shape.patches)
        planned = [activations(shape, METHODS[method], dtype, count) for count in (3, 8)]
        each, forecasted = ((large - small) / 5 for small, large in (found, planned))
        if method == "head":  # the backbone keeps nothing; what the head reads counts as nothing
            assert planned == [0, 0] and each <= 8 * 4 * shape.patches * 64
        else:
            near = 0.12 if (family, method) in PADDED else 0.035 if dtype == "bfloat16" else 0.002
            assert forecasted == pytest.approx(each, rel=near)
        assert trainable.parameters()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", sorted(OF_IMAGES))
def test_so_do_blocks_that_kernels_compute(folders, shape_with_head, family, dtype):
    """What is kept outside of blocks, which the plan leaves out, is small."""
    shape = shape_with_head(family)
    module, objective, _ = loaded(folders / family, "lora", dtype)
    fused = FusedEncoder(module, lambda batch: objective.loss(module, batch))
    found = []
    for count in (3, 8):
        rows = objective.loss.random_rows(module, [shape.patches] * count, torch.Generator().manual_seed(0))
        (batch,) = objective.loss.batches(rows, 10**6)
        with fused.active():
            found.append(saved_bytes(fused, batch, module))
    planned = forecast_of(shape, METHODS["lora"], dtype, AtOnce(5 * shape.patches, 5, shape.patches)).saved
    assert 1 <= (found[1] - found[0]) / planned < (1.3 if family == "siglip" else 1.15)


def test_the_families_with_kernels_are_those_that_training_has(folders, shape_with_head):
    for family in FAMILIES:
        module, _, _ = loaded(folders / family, "lora")
        assert has_encoder_kernels(module) == (family in OF_IMAGES), family
        forms = [
            form_of(shape_with_head(family), METHODS[name], TrainingConfig(), PROCESSOR) for name in ("lora", "full")
        ]
        assert forms == ["fast" if family in OF_IMAGES else "plain", "plain"]


def test_blocks_that_do_not_learn_are_computed_once_where_images_are_seen_again(folders, pictures):
    def made(epochs: int = 4, backend: str = "auto", **more: Any) -> Plan:
        training = {"batch_size": 4, "epochs": epochs, "backend": backend}
        more |= {"data": str(pictures), "adapter": {"method": "head"}, "training": training}
        return plan(config_of(folders / "vit", **more))

    cached, eager, once = made(), made(backend="eager"), made(epochs=1)
    varied = made(images={"augmentation": "flip"})
    assert cached.forecast.memory["prefix"] == 20 * 17 * 16 * 4  # 16 patches and the class token, of width 16
    assert any(line.startswith("  prefix") for line in lines_of(cached)), "other methods have no such part"
    for other in (eager, once, varied):
        assert "prefix" not in {part.name for part in other.forecast.memory.parts}
    assert once.step.operations == varied.step.operations == eager.step.operations
    assert 0.25 * once.step.operations < cached.step.operations < 0.6 * once.step.operations
    assert cached.forecast.needed < cached.forecast.peak


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_pass_has_the_operations_that_torch_counts(folders, shape_with_head, family):
    shape = shape_with_head(family)
    module = AutoModelForImageClassification.from_pretrained(
        folders / family, num_labels=len(LABELS), attn_implementation="eager"
    ).eval()
    with FlopCounterMode(display=False) as counter:
        logits = classify(SIZE)(module, torch.zeros(2, 3, SIZE, SIZE))
        forward = counter.get_total_flops()
        logits.sum().backward()
    load = Load((shape.patches,) * 2, 2.0)
    whole, frozen = Operations(shape, load, {}, METHODS["full"]), Operations(shape, load, {})
    assert whole.forward == frozen.forward == pytest.approx(forward, rel=1e-6)
    if family not in (*GROUPED, "siglip"):  # SigLIP's pooling is computed, and a classifier does not read it
        assert whole.backward == pytest.approx(counter.get_total_flops() - forward, rel=0.1)
    assert frozen.backward == 0


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_larger_images_keep_and_compute_more_and_learn_no_more(shape_with_head, family):
    small, large = shape_with_head(family), shape_with_head(family, 2 * SIZE)
    assert (large.image, large.patches) == (2 * SIZE, 4 * small.patches)
    kept_by = [activations(shape, METHODS["full"], "float32", 4) for shape in (small, large)]
    assert 3.5 < kept_by[1] / kept_by[0] < 6
    assert parameters_of(small, METHODS["lora"]).trainable == parameters_of(large, METHODS["lora"]).trainable


def test_a_fake_pass_leaves_nothing_behind_that_a_real_one_would_meet(folders, shape_with_head):
    """BEiT caches a table of positions by its size for the whole process."""
    file = folders / "beit" / "config.json"
    shape_of_config(read_json(file), "beit", str(file), NewHead(3, image=2 * SIZE))
    module = AutoModelForImageClassification.from_pretrained(folders / "beit").eval()
    for side in (SIZE, 2 * SIZE):
        assert classify(side)(module, torch.zeros(1, 3, side, side)).isfinite().all()


# Rows and sizes


def images_in(folder: Path, classes: dict[str, int]) -> Path:
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (9, 7), (number, 0, 0)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def pictures(tmp_path) -> Path:
    return images_in(tmp_path / "pictures", {"cat": 9, "dog": 6, "ship": 5})


def config_of(model: Path | str, **more: Any) -> Planned:
    return Planned.model_validate({"model": {"name": str(model), "dtype": "float32"}, **more})


def test_images_are_counted_and_not_decoded(pictures, tmp_path):
    (pictures / "cat" / "broken.png").write_bytes(b"")
    rows = images_of(DataConfig(path=str(pictures)), 4)
    assert (rows.documents.likely, rows.tokens.likely, rows.longest) == (21, 84, 4) and rows.documents.exact
    assert images_of(DataConfig(path=str(pictures), held_out=6), 4).documents.likely == pytest.approx(15)
    assert images_of(DataConfig(path=str(pictures), rows=8), 4).documents.likely == 8
    np.savez(tmp_path / "a.npz", images=np.zeros((7, 4, 4, 3), np.uint8), labels=np.arange(7) % 2)
    assert images_of(DataConfig(path=str(tmp_path / "a.npz")), 1).documents.likely == 7


def test_a_folder_of_images_is_planned_with_its_classes_and_the_size_of_its_processor(folders, pictures):
    made = plan(config_of(folders / "vit", data=str(pictures), training={"batch_size": 8, "epochs": 2}))
    assert (made.shape.outputs, made.shape.image, made.steps) == (3, SIZE, 5)
    assert made.amount.tokens == 8 * patches_of(SIZE) == made.forecast.amount.tokens
    assert made.forecast.form == "fast" and made.trained
    assert made.methods["full"].form == "plain"
    whole = made.methods["full"]
    assert whole.parameters.trainable == made.shape.parameters
    larger = plan(config_of(folders / "vit", data=str(pictures), images={"size": 64}))
    assert larger.shape.image == 64 and larger.step.operations > made.step.operations


def test_pixels_count_for_the_peak_and_not_for_what_fits(folders, pictures, tiny_folder):
    made = plan(config_of(folders / "vit", data=str(pictures), training={"epochs": 1}))
    assert made.forecast.memory["images"] == 20 * SIZE * SIZE * 3
    assert made.forecast.peak - made.forecast.needed == 20 * SIZE * SIZE * 3 and made.fit.peak == made.forecast.needed
    short = plan(config_of(folders / "vit", data=str(pictures), training={"steps": 1, "batch_size": 4, "epochs": None}))
    assert short.forecast.memory["images"] == 4 * SIZE * SIZE * 3
    of_texts = plan(config_of(tiny_folder))
    assert "images" not in {part.name for part in of_texts.forecast.memory.parts}


@pytest.mark.parametrize("method", ["lora", "full", "head"])
def test_memory_grows_with_images_at_once_and_a_device_takes_as_many_as_fit(folders, pictures, method):
    config = config_of(folders / "swin", data=str(pictures), adapter={"method": method})
    made = plan(config)
    small, large = (made.forecast.with_tokens(tokens, 0) for tokens in (400, 800))
    assert large.memory["activations"] == pytest.approx(2 * small.memory["activations"], rel=0.01)
    assert large.memory["overhead"] > small.memory["overhead"]
    at_once = made.forecast.most_at_once(large.needed, 0)
    assert 736 <= at_once <= 800


def test_a_probe_measures_images(folders, pictures):
    """By steps that are large enough for their time to grow with their images."""
    training, images = {"batch_size": 20, "epochs": 1}, {"size": 5 * SIZE}
    config = config_of(folders / "vit", data=str(pictures), training=training, images=images)
    measured = probe(config)
    assert measured.per_token > 0 and plan(config, probe=measured).duration is not None


@pytest.mark.parametrize(("family", "mostly"), [("vit", "patches"), ("swin", "patches"), ("resnet", "convolutions")])
def test_speed_is_that_of_what_most_operations_are(shape_with_head, family, mostly):
    assert shape_with_head(family).mostly == mostly
    device = replace(PROCESSOR, bfloat16=2e11, flags=frozenset({"avx512_bf16"}))
    for dtype in ("float32", "bfloat16"):
        speed = speed_of(device, dtype, 1, mostly, form="plain")
        assert speed is not None and speed.efficiency is EFFICIENCIES[mostly, dtype]
    assert llama().mostly is None


@pytest.mark.parametrize(("family", "side"), [("deit", SIZE), ("clip", SIZE), ("resnet", SIZE), ("siglip", SIZE)])
def test_each_family_names_its_size_in_its_own_way(folders, family, side):
    assert side_of(config_of(folders / family), base_of(str(folders / family))) == side


def test_a_known_name_has_the_size_of_its_own_processor_and_not_of_its_position_table():
    for name in ("facebook/dinov2-base", "google/vit-base-patch16-224"):
        assert side_of(config_of(name), base_of(name)) == 224
    assert side_of(config_of("dinov2-base", images={"size": 112}), base_of("dinov2-base")) == 112


def test_without_rows_a_model_of_images_is_only_counted_and_told_how_to_be_planned(folders):
    runner = CliRunner()
    told = runner.invoke(app, ["plan", "--model", "dinov2-base"])
    assert told.exit_code == 0 and "86,580,480" in told.output and "--objective image-classification" in told.output
    told = runner.invoke(app, ["plan", "--model", str(folders / "vit"), "--objective", "image-classification"])
    assert told.exit_code == 0 and f"each image of {SIZE} x {SIZE} pixels" in told.output


def test_the_plan_speaks_of_images(folders, pictures):
    words = ["plan", "--model", str(folders / "resnet"), "--data", str(pictures), "--image-size", str(2 * SIZE)]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    assert "64 x 64 pixels" in told.output and "20, each counted as 16 tokens" in told.output
    assert "sequences" not in told.output and "of width 0" not in told.output
    facts = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert facts["image_size"] == 64 and facts["outputs"] == 3 and facts["memory_bytes"]["peak"] > 0


def test_what_does_not_fit_together_is_refused(folders, tiny_folder, tmp_path):
    with pytest.raises(ConfigError, match="is a model of texts"):
        plan(config_of(tiny_folder, objective="image-classification"))
    with pytest.raises(ConfigError, match="images"):
        plan(config_of(tiny_folder, images={"size": 64}))
    coarse = Path(copytree(folders / "vit", tmp_path / "coarse"))
    write_json(coarse / "config.json", read_json(coarse / "config.json") | {"patch_size": 32, "image_size": 32})
    with pytest.raises(ModelError, match="cannot be planned for images of 17 x 17"):
        plan(config_of(coarse, objective="image-classification", images={"size": 17}))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"architecture": "hf-hub:someone/model"}, "one of timm's models is expected"),
        ({"architecture": "../model"}, "one of timm's models is expected"),
        ({"model_args": {"checkpoint_path": "weights.pth"}}, "would read weights"),
        ({"model_args": {"pretrained": True}}, "would read weights"),
    ],
)
def test_a_config_of_timm_may_name_no_weights(folders, changes, problem):
    config = read_json(folders / "resnet" / "config.json") | changes
    with pytest.raises(ModelError, match=problem):
        shape_of_config(config, "resnet", "config.json")
