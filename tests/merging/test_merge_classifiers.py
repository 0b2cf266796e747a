"""Merged classifiers of texts and images open in transformers with their head, and are the trained ones."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from conftest import tiny_model
from kit.classifiers import encoder_folder, labelled, write_rows
from kit.vision_models import images, save_folder
from rankwise.commands.extract import extract
from rankwise.commands.merge import merge
from rankwise.commands.train import train
from rankwise.config.experiment import Experiment
from rankwise.errors import AdapterError
from rankwise.inference.tuned_model import load_tuned


def trained(model: str, data: dict[str, Any], run: str, **more: Any) -> None:
    settings: dict[str, Any] = {
        "model": {"name": model, "dtype": "float32"}, "data": data, "run": run,
        "adapter": {"method": "lora", "rank": 2},
        "training": {"steps": 3, "batch_size": 6, "learning_rate": 0.01},
    }  # fmt: skip
    train(Experiment(**settings | more))


def opened(auto: Any, folder: str) -> nn.Module:
    model, report = auto.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    return model.eval()


def near(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("base", ["bert", "llama"])
def test_a_classifier_of_texts(tmp_path, base, hub_tokenizer):
    with contextlib.chdir(tmp_path):
        if base == "bert":
            encoder_folder(Path("base"))
        else:
            tiny_model("llama", vocab=len(hub_tokenizer)).save_pretrained("base")
            hub_tokenizer.save_pretrained("base")
        rows = write_rows("rows.jsonl", labelled(24))
        trained("base", {"path": rows, "held_out": 6}, "run", objective="sequence-classification")
        result = merge("run", "merged")
        model = opened(AutoModelForSequenceClassification, "merged")
        assert model.config.id2label == {0: "bad", 1: "good"}
        tokenizer = AutoTokenizer.from_pretrained("merged")
        inputs = tokenizer(["the film is bright", "a plot is cold and dull"], padding=True, return_tensors="pt")
        live = load_tuned("run").model.module
        with torch.no_grad():
            assert near(model(**inputs).logits, live(**inputs.to(live.device)).logits.cpu()) <= 1e-5
        assert pipeline("text-classification", "merged")("the film is bright")[0]["label"] in ("good", "bad")
        assert result.changed > 4
        assert not (Path("merged") / "generation_config.json").exists()
        left_out = [key for key in load_file("base/model.safetensors") if "lm_head" in key or "cls.pred" in key]
        assert left_out and not set(left_out) & load_file("merged/model.safetensors").keys()
        with pytest.raises(AdapterError, match="no base to scale"):
            merge("run", "half", strength=0.5)


@pytest.mark.parametrize("family", ["vit", "dinov2", "convnext", "resnet", "efficientnet-same"])
def test_a_classifier_of_images(tmp_path, family):
    from PIL import Image

    with contextlib.chdir(tmp_path):
        save_folder(family, Path("base"))
        for number in range(18):
            folder = Path("rows") / ("red", "green", "blue")[number % 3]
            folder.mkdir(parents=True, exist_ok=True)
            colour = tuple(200 if at == number % 3 else 20 + number for at in range(3))
            Image.new("RGB", (40, 40), colour).save(folder / f"{number}.png")
        trained("base", {"path": "rows", "held_out": 6}, "run")
        merge("run", "merged")
        model = opened(AutoModelForImageClassification, "merged")
        live = load_tuned("run").model.module
        pixels = images(2)
        with torch.no_grad():
            assert near(model(pixels).logits, live(pixels.to(live.device)).logits.cpu()) <= 1e-5
        assert (Path("merged") / "preprocessor_config.json").is_file()


def test_an_adapter_out_of_a_full_run_has_its_head(tmp_path):
    with contextlib.chdir(tmp_path):
        encoder_folder(Path("base"))
        rows = write_rows("rows.jsonl", labelled(24))
        trained("base", {"path": rows, "held_out": 6}, "run", adapter={"method": "full"})
        result = extract("run", "out", rank=64)
        assert "classifier" in result.whole and result.error < 1e-6
        settings = json.loads(Path("out/adapter_config.json").read_text())
        assert settings["task_type"] == "SEQ_CLS" and "classifier" in settings["modules_to_save"]
        tuned, extracted = load_file("runs/run/model/model.safetensors"), load_tuned("out")
        linear = [f"{layer.layer}.weight" for layer in result.layers]
        merge("out", "merged")
        merged = load_file("merged/model.safetensors")
        for name in (*linear, "classifier.weight", "classifier.bias"):
            torch.testing.assert_close(merged[name], tuned[name], rtol=1e-5, atol=1e-6)
        assert extracted.model.module is not None and {one.kind for one in result.outside} >= {"embeddings", "norms"}
