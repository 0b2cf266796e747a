"""Tiny random image models of each family, in memory and as folders that look like the family's on the hub.

    model, image_size = tiny("swin")            a classifier, which AutoModelForImageClassification builds
    folder = save_folder("swin", tmp_path)      config.json, model.safetensors, preprocessor_config.json

A folder has what the family's own folders have: DINOv2's has no head, CLIP's and SigLIP's have both towers, DeiT's has
the two heads of a distilled model, and timm's have no model_type, timm's names of weights and no image processor.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

SIZE = 32
"""Height and width of an image that each of these models takes."""
LABELS = ("cat", "dog", "ship")
PLAIN = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "image_size": SIZE, "patch_size": 8}
TEXT = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
STAGES = {"image_size": SIZE, "patch_size": 4, "depths": [1, 1]}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": PLAIN | {"intermediate_size": 32},
    "deit": PLAIN | {"intermediate_size": 32},
    "dinov2": PLAIN | {"mlp_ratio": 2},
    "beit": PLAIN | {"intermediate_size": 32, "use_relative_position_bias": True, "layer_scale_init_value": 0.1},
    "swin": STAGES | {"embed_dim": 8, "num_heads": [2, 2], "window_size": 4},
    "convnext": STAGES | {"hidden_sizes": [8, 16], "num_stages": 2},
    "clip": {"vision_config": PLAIN | {"intermediate_size": 32}, "text_config": TEXT, "projection_dim": 16},
    "siglip": {"vision_config": PLAIN | {"intermediate_size": 32}, "text_config": TEXT},
}
TIMM: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "resnet": ("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "stem_width": 8}, "conv1", "fc"),
    "efficientnet": ("test_efficientnet", {}, "conv_stem", "classifier"),
    "efficientnet-same": ("test_efficientnet", {"pad_type": "same"}, "conv_stem", "classifier"),
}
"""timm's architecture, the arguments that make it small, its first convolution and its head. The last one pads as
TensorFlow does, by timm's Conv2dSame, like the starter efficientnet-lite0."""
FAMILIES = (*CONFIGS, *TIMM)
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
OF_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
BOTH = {"do_normalize": True, "do_resize": True}
SQUARE = {"height": SIZE, "width": SIZE}
NEW = BOTH | {"do_rescale": True, "rescale_factor": 1 / 255}
PROCESSORS: dict[str, dict[str, Any]] = {
    "vit": BOTH | HALVES | {"feature_extractor_type": "ViTFeatureExtractor", "resample": 2, "size": SIZE},
    "deit": BOTH | IMAGENET | {"feature_extractor_type": "DeiTFeatureExtractor", "resample": 3, "size": 36}
    | {"do_center_crop": True, "crop_size": SIZE},
    "dinov2": NEW | IMAGENET | {"image_processor_type": "BitImageProcessor", "resample": 3, "do_convert_rgb": True}
    | {"do_center_crop": True, "crop_size": SQUARE, "size": {"shortest_edge": 36}},
    "beit": BOTH | HALVES | {"feature_extractor_type": "BeitFeatureExtractor", "resample": 2, "size": SIZE}
    | {"do_center_crop": False, "crop_size": SIZE},
    "swin": BOTH | IMAGENET | {"feature_extractor_type": "ViTFeatureExtractor", "resample": 3, "size": SIZE},
    "convnext": BOTH | IMAGENET | {"feature_extractor_type": "ConvNextFeatureExtractor", "resample": 3, "size": SIZE}
    | {"crop_pct": 0.875},
    "clip": BOTH | OF_CLIP | {"feature_extractor_type": "CLIPFeatureExtractor", "resample": 3, "size": SIZE}
    | {"do_center_crop": True, "crop_size": SIZE},
    "siglip": NEW | HALVES | {"image_processor_type": "SiglipImageProcessor", "resample": 3, "size": SQUARE}
    | {"processor_class": "SiglipProcessor"},
}  # fmt: skip
"""Settings as they stand in the hub's preprocessor_config.json, the older ones by the names of their time."""


def tiny(family: str, labels: tuple[str, ...] = LABELS, seed: int = 0) -> tuple[PreTrainedModel, int]:
    """A random classifier in eval mode, and the height and width of its images."""
    torch.manual_seed(seed)
    model = AutoModelForImageClassification.from_config(_config(family, labels))
    return _lively(model).eval(), SIZE


def save_folder(family: str, folder: Path | str, labels: tuple[str, ...] = LABELS, seed: int = 0) -> Path:
    """Write a random model of the family as its publishers do."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if family in TIMM:
        return _save_timm(family, folder, labels, seed)
    torch.manual_seed(seed)
    config = _config(family, labels)
    if family == "deit":
        config.architectures = ["DeiTForImageClassificationWithTeacher"]
    has_head = family not in ("dinov2", "clip", "siglip")
    model = (AutoModelForImageClassification if has_head else AutoModel).from_config(config)
    _lively(model).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[family], indent=2), encoding="utf-8")
    return folder


def images(count: int, size: int = SIZE, seed: int = 0) -> torch.Tensor:
    """Random pixels (N, 3, H, W) as a model takes them."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def _config(family: str, labels: tuple[str, ...]) -> PreTrainedConfig:
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: at for at, name in enumerate(labels)}}
    if family in TIMM:
        architecture, arguments, _, _ = TIMM[family]
        return CONFIG_MAPPING["timm_wrapper"](architecture=architecture, model_args=arguments or None, **names)
    config = CONFIG_MAPPING[family](**CONFIGS[family], **names)
    if family == "deit":  # two classes for images share its model_type, and `architectures` decides
        config.architectures = ["DeiTForImageClassification"]
    return config


@torch.no_grad()
def _lively(model: PreTrainedModel) -> PreTrainedModel:
    """Weights and statistics as far from their start as a trained model's, so that every layer counts."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.5, 1.5)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                module.bias.normal_(0, 0.1)
    return model


def _save_timm(family: str, folder: Path, labels: tuple[str, ...], seed: int) -> Path:
    architecture, arguments, first, head = TIMM[family]
    model, _ = tiny(family, labels, seed)
    weights = {name.removeprefix("timm_model."): value for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    pretrained = {
        "tag": "tiny", "custom_load": False, "input_size": [3, SIZE, SIZE], "fixed_input_size": False,
        "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center", "mean": IMAGENET["image_mean"],
        "std": IMAGENET["image_std"], "num_classes": len(labels), "pool_size": [1, 1], "first_conv": first,
        "classifier": head,
    }  # fmt: skip
    features = model.get_submodule(f"timm_model.{head}").in_features
    config = {
        "architecture": architecture, "num_classes": len(labels), "num_features": features, "global_pool": "avg",
        "label_names": list(labels), "pretrained_cfg": pretrained, **({"model_args": arguments} if arguments else {}),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


def dark_and_light(folder: Path) -> None:
    """Eight images in folders of their classes."""
    from PIL import Image

    for number in range(8):
        path = folder / ("dark", "light")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (9 * number, 20, 200 * (number % 2))).save(path)


def lay_pictures(folder: Path) -> Path:
    """A folder with a tiny ViT, dark and light images in `rows`, and the finished run `pictures` over both."""
    from rankwise.commands.train import train
    from rankwise.config.experiment import Experiment

    save_folder("vit", folder / "vit")
    dark_and_light(folder / "rows")
    with contextlib.chdir(folder):
        train(Experiment(model="vit", data="rows", run="pictures", training={"steps": 2, "batch_size": 4}))
    return folder
