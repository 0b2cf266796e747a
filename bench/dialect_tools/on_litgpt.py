"""python on_litgpt.py BASE OUT NAME: LitGPT converts the base, makes and saves an adapter, and computes its logits."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from litgpt.finetune.lora import setup
from litgpt.lora import GPT, Config, lora_filter
from litgpt.parser_config import save_hyperparameters
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
from litgpt.utils import save_config

base, out, name = sys.argv[1:4]
ids = torch.tensor([json.loads((Path(out) / "ids.json").read_text())])
checkpoint = Path(out) / "checkpoint"
shutil.copytree(base, checkpoint)
if name == "neox":
    import litgpt.config as known

    hub = json.loads((checkpoint / "config.json").read_text())
    known.name_to_config["neox"] = dict(  # noqa: C408
        name="neox", hf_config={"org": "somebody", "name": "neox"}, block_size=256, vocab_size=hub["vocab_size"],
        padded_vocab_size=hub["vocab_size"], n_layer=hub["num_hidden_layers"], n_head=hub["num_attention_heads"],
        n_embd=hub["hidden_size"], intermediate_size=hub["intermediate_size"],
    )  # fmt: skip
convert_hf_checkpoint(checkpoint_dir=checkpoint, model_name=name, dtype="float32")
arguments = {"lora_r": 4, "lora_alpha": 12, "lora_query": True, "lora_key": False, "lora_value": True,
             "lora_projection": True, "lora_mlp": True, "lora_head": False}  # fmt: skip
model = GPT(Config.from_name(name, **arguments))
model.load_state_dict(torch.load(checkpoint / "lit_model.pth", weights_only=True), strict=False)
torch.manual_seed(1)
for key, value in model.named_parameters():
    if "lora_" in key:
        value.data = torch.randn_like(value) * 0.02
model.eval()
with torch.inference_mode():
    np.save(Path(out) / "logits.npy", model(ids).numpy())
state = {key: value for key, value in model.state_dict().items() if lora_filter(key, value)}
final = Path(out) / "final"
final.mkdir()
torch.save({"model": state}, final / "lit_model.pth.lora")
save_config(model.config, final)
sys.argv = [
    "lora",
    str(checkpoint),
    *(f"--{key}={str(value).lower()}" for key, value in arguments.items()),
]
save_hyperparameters(setup, final)
shutil.copy(checkpoint / "config.json", final)
