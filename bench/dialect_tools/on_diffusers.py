"""python on_diffusers.py BASE OUT KIND: diffusers saves and loads a LoRA of a text encoder. KIND: metadata or kohya."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

base, out, kind = sys.argv[1:4]


def loaded() -> CLIPTextModel:
    """Text encoders of older transformers have a part text_model around all layers."""
    model = CLIPTextModel(CLIPTextConfig.from_pretrained(base)).float().eval()
    around = "text_model." if any(key.startswith("text_model.") for key in model.state_dict()) else ""
    state = load_file(Path(base) / "model.safetensors")
    model.load_state_dict(
        {around + key.removeprefix("text_model."): value for key, value in state.items()}, strict=True
    )
    return model


ids = torch.tensor([json.loads((Path(out) / "ids.json").read_text())])
encoder = loaded()
torch.manual_seed(1)
if kind == "metadata":
    config = LoraConfig(r=4, lora_alpha=10, use_rslora=True, target_modules=["q_proj", "fc1"], rank_pattern={"fc1": 2})
    encoder.add_adapter(config)
    for key, value in encoder.named_parameters():
        if "lora_" in key:
            value.data = torch.randn_like(value) * 0.1
    StableDiffusionPipeline.save_lora_weights(
        out, text_encoder_lora_layers=get_peft_model_state_dict(encoder),
        text_encoder_lora_adapter_metadata=config.to_dict(),
    )  # fmt: skip
    file = "pytorch_lora_weights.safetensors"
else:
    sys.path.insert(0, kind)
    from networks import lora

    network = lora.create_network(1.0, 4, 3.0, None, encoder, torch.nn.Module())
    network.apply_to(encoder, torch.nn.Module(), apply_text_encoder=True, apply_unet=False)
    for key, value in network.named_parameters():
        if "lora_" in key:
            value.data = torch.randn_like(value) * 0.1
    with torch.inference_mode():
        np.save(Path(out) / "kohya.npy", encoder(ids).last_hidden_state.numpy())
    state = {key: value.detach().clone() for key, value in network.state_dict().items()}
    save_file(state, Path(out) / "kohya.safetensors")  # as its save_weights does, which adds hashes and needs much more
    file = "kohya.safetensors"
plain = loaded()
found = StableDiffusionPipeline.lora_state_dict(out, weight_name=file, return_lora_metadata=True)
StableDiffusionPipeline.load_lora_into_text_encoder(found[0], found[1], plain, metadata=found[2])
with torch.inference_mode():
    np.save(Path(out) / "logits.npy", plain(ids).last_hidden_state.numpy())
