"""Real digits from an array file, learned from scratch by a small vision transformer in a few seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from rankwise.commands.train import train
from rankwise.config.experiment import Experiment

PREPROCESSING = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 16, "width": 16}, "resample": 2,
    "do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip


def test_digits_are_learned(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=16,
                       patch_size=4)  # fmt: skip
    ViTForImageClassification(config).save_pretrained("small-vit")
    Path("small-vit/preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    trained = train(Experiment(
        model={"name": "small-vit", "dtype": "float32"}, run="digits", adapter={"method": "full"},
        data={"path": str(shared_data / "digits" / "digits.npz"), "held_out": 200},
        training={"steps": 220, "batch_size": 32, "learning_rate": 3e-3}, validation={"steps": 1000},
    ))  # fmt: skip
    results = trained.manifest.results
    assert results is not None and results.validation_accuracy_before is not None
    assert results.validation_accuracy_before < 0.3
    assert results.validation_accuracy_after is not None and results.validation_accuracy_after > 0.6
    report = json.loads(Path("runs/digits/data_report.json").read_text())
    assert report["targets"]["classes"] == [str(digit) for digit in range(10)]
