"""python on_loralib.py BASE OUT KIND: loralib's layers in transformers' model, their state dict and logits."""

import json
import sys
from pathlib import Path

import loralib
import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

base, out, _ = sys.argv[1:4]
ids = torch.tensor([json.loads((Path(out) / "ids.json").read_text())])
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
for path, module in list(model.named_modules()):
    parent, leaf = model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
    if leaf in ("q_proj", "v_proj", "down_proj"):
        new = loralib.Linear(module.in_features, module.out_features, r=6, lora_alpha=9, bias=module.bias is not None)
    elif leaf in ("embed_tokens", "wte"):
        new = loralib.Embedding(*module.weight.shape, r=3, lora_alpha=9)
    elif isinstance(module, Conv1D) and leaf == "c_attn":
        new = loralib.MergedLinear(
            module.nx, module.nf, r=6, lora_alpha=9, enable_lora=[True, False, True], fan_in_fan_out=True
        )
    else:
        continue
    new.weight.data = module.weight.data.clone()
    if getattr(module, "bias", None) is not None:
        new.bias.data = module.bias.data.clone()
    new.train()  # factors stay apart from the weight; it returns nothing
    setattr(parent, leaf, new)
if getattr(model.config, "tie_word_embeddings", False):
    model.get_output_embeddings().weight = torch.nn.Parameter(model.get_output_embeddings().weight.detach().clone())
torch.manual_seed(1)
for key, value in model.named_parameters():
    if "lora_" in key:
        value.data = torch.randn_like(value) * 0.05
with torch.inference_mode():
    np.save(Path(out) / "logits.npy", model(ids).logits.numpy())
torch.save(loralib.lora_state_dict(model), Path(out) / "lora.pt")
