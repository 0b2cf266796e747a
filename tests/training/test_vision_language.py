"""Language models that read images too: rows of text train the language model, and the tower is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

import rankwise
from kit.families import BY_NAME, hub_of
from rankwise.forward.model_shape import shape_of_config
from rankwise.methods.inject import inject
from rankwise.planning.parameters import target_notes
from rankwise.runs.records import StatusMessage

HUB = hub_of(BY_NAME["chatml"], "qwen")
TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "vocab_size": len(HUB),
}  # fmt: skip
TOWER = {
    "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
PARTS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
VISUAL = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 44, "num_heads": 4, "out_hidden_size": 32, "patch_size": 14,
    "fullatt_block_indexes": [1],
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": TEXT | {"head_dim": 8}, "vision_config": TOWER, "mm_tokens_per_image": 4},
    "qwen2_5_vl": {"text_config": TEXT | {"rope_parameters": PARTS}, "vision_config": VISUAL},
    "llava": {
        "text_config": TEXT | {"model_type": "llama"},
        "vision_config": TOWER | {"model_type": "clip_vision_model", "projection_dim": 32},
    },
}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40).reshape(2, 20)).logits


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def fresh(folder: Path | str) -> nn.Module:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_rows_of_text_train_the_language_model_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(CONFIG_MAPPING[name](**MODELS[name])).save_pretrained("model")
    HUB.save_pretrained("model")
    Path("rows.jsonl").write_text("".join(json.dumps({"prompt": f"q {n}", "completion": "fox"}) + "\n" for n in "abcd"))
    events: list[object] = []
    training = rankwise.TrainingConfig(steps=5, batch_size=4, learning_rate=0.005, schedule="constant")
    model = {"name": "model", "dtype": "float32"}
    run = rankwise.train(
        rankwise.Experiment(model=model, data="rows.jsonl", run="text", training=training), callback=events.append
    )
    losses = [row["loss"] for row in run.metrics if row["kind"] == "step"]
    assert losses[-1] < losses[0]
    layers = run.trainable.adapters.layers
    assert layers and all(".language_model." in path for path in layers)
    notes = [event.text for event in events if isinstance(event, StatusMessage) and "images or sounds" in event.text]
    assert len(notes) == 1 and "get no adapter, since rows of text do not reach them" in notes[0]

    trained, base = logits(run.tuned.model.module), logits(fresh("model"))
    assert apart(trained, base) > 1e-3
    assert torch.equal(logits(rankwise.load_run("text").model.module), trained), "reloaded"
    assert apart(logits(PeftModel.from_pretrained(fresh("model"), "runs/text/adapter")), trained) <= 1e-5, "PEFT"
    rankwise.export("text", to="merged", format="merged")
    assert apart(logits(fresh("merged")), trained) <= 1e-5, "merged"
    rankwise.merge("text", "file-by-file")
    assert apart(logits(fresh("file-by-file")), trained) <= 1e-5, "merged file by file"


def test_a_plan_leaves_the_tower_alone_too_and_a_name_reaches_it() -> None:
    config = CONFIG_MAPPING["gemma3"](**MODELS["gemma3"])
    model = AutoModelForImageTextToText.from_config(config)
    adapters = inject(model, rankwise.LoraConfig(rank=2))
    notes = adapters.notes
    adapters.remove()
    shape = shape_of_config(config.to_dict(), "gemma3", "config.json")
    assert target_notes(shape, rankwise.LoraConfig(rank=2)) == notes
    named = inject(model, rankwise.LoraConfig(rank=2, targets=("vision_tower.*q_proj",)))
    assert named.layers and all(".vision_tower." in path for path in named.layers)
