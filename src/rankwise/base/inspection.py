"""Inspection of a model folder before transformers reads anything from it: what must not be loaded, and what the folder
says of its model, such as whether it writes texts, how its weights are stored, and how its head pools a text.

Weights must be safetensors (no pickles), in full precision or quantised by bitsandbytes. Python code that comes with a
model runs only if the user named its commit; code that a setting refers to elsewhere never runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwise.base.config_check import config_problems, is_timm_config, refuse, settings_in
from rankwise.config.base import shown
from rankwise.config.classification import ClassificationConfig
from rankwise.config.models import BOTH, DECODER, ENCODER, IMAGES
from rankwise.errors import ModelError, RemoteCodeError, some
from rankwise.runs.row_facts import Pooling
from rankwise.system.contents import content_of
from rankwise.system.files import sha256_of
from rankwise.system.foreign_json import read_if_sound, read_json

MODULES, REPORT, POOLING = "modules.json", "data_report.json", "1_Pooling/config.json"
KNOWN: dict[str, Pooling] = {
    "mean": "mean", "cls": "cls", "max": "max", "lasttoken": "own", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_lasttoken": "own",
}  # fmt: skip
"""By the names that the versions of sentence-transformers write."""


def inspect_folder(folder: Path, config: dict[str, Any] | None = None, *, trusted: bool = False) -> None:
    """Refuse a folder that cannot be loaded, or only by running its own code. `config` is its config.json, if read."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = read_json(folder / "config.json") if config is None else config
    for path in sorted(folder.iterdir()):  # reading a pipe would wait for ever, and a device may never end
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ModelError(f"{path} is a pipe or a device, and no file; this folder is not a model.")
    if not any(folder.glob("*.safetensors")):
        pickled = some(sorted(path.name for path in folder.glob("*.bin")), 2)
        hint = (
            f" Its weights are pickle files ({pickled}), which rankwise never reads; convert them to safetensors."
            if pickled
            else ""
        )
        raise ModelError(f"{folder} has no .safetensors weights.{hint}")
    if (folder / "adapter_config.json").exists():
        raise ModelError(f"{folder} contains an adapter beside its weights; give a folder with only the base model.")
    if (problem := quantization_problem(config)) is not None:
        raise ModelError(f"{folder} cannot be used: {problem}")
    refuse(str(folder / "config.json"), list(config_problems(config, any_number=False)))
    # code in the folder of an architecture that transformers has itself is ignored
    native = config.get("model_type") in CONFIG_MAPPING or is_timm_config(config)
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        settings = config if name == "config.json" else read_json(folder / name) if (folder / name).is_file() else {}
        _refuse_code(folder, name, settings, trusted or native)
        _refuse_templates(folder / name, settings.get("chat_template", ""))


def _refuse_templates(file: Path, template: Any) -> None:
    """A chat template is a text, or several by name."""
    named = list(template.items()) if isinstance(template, dict) else [("default", template)]
    if isinstance(template, list):
        named = [(one.get("name"), one.get("template")) if isinstance(one, dict) else (None, one) for one in template]
    if template is not None and not all(isinstance(part, str) for pair in named for part in pair):
        raise ModelError(f'{file}: "chat_template" is {shown(template)}; a text, or several with names, is expected.')


def reads_images(config: dict[str, Any]) -> bool:
    """Whether a folder's model classifies images, by transformers or by timm, and generates no text."""
    from transformers.models.auto import modeling_auto

    if is_timm_config(config):
        return True
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return False
    return kind in modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES


def refuse_vision(config: dict[str, Any], name: str) -> None:
    """Refuse vision models where a model of texts is needed; later errors would be about missing tokenizers."""
    if reads_images(config):
        raise ModelError(
            f"{name} is a vision model ({config.get('model_type') or config.get('architecture')}), and a model of "
            "texts is needed here."
        )  # fmt: skip


def is_encoder(config: dict[str, Any]) -> bool:
    """Whether transformers has this architecture for masked tokens and the folder's model generates nothing."""
    from transformers.models.auto import modeling_auto

    generates = config.get("is_decoder") or config.get("is_encoder_decoder") or any(
        name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))
        for name in config.get("architectures") or ()
    )  # fmt: skip
    return config.get("model_type") in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not generates


def is_encoder_decoder(config: dict[str, Any]) -> bool:
    """Whether the folder's model is an encoder that reads a text and a decoder that writes another, such as T5."""
    from transformers.models.auto import modeling_auto

    texts = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    return bool(config.get("is_encoder_decoder")) and config.get("model_type") in texts


def nature_of(config: dict[str, Any]) -> str:
    """What the folder's model is by nature (config/models.py)."""
    if reads_images(config):
        return IMAGES
    return ENCODER if is_encoder(config) else BOTH if is_encoder_decoder(config) else DECODER


def _refuse_code(folder: Path, name: str, settings: dict[str, Any], allowed: bool) -> None:
    if any(isinstance(one, str) and "--" in one for _, one in settings_in([settings.get("auto_map")])):
        raise RemoteCodeError(f"{folder / name} refers to Python code of another repository. Such code is never run.")
    if "auto_map" in settings and not allowed:
        files = some(sorted(path.name for path in folder.glob("*.py"))) or str(settings["auto_map"])
        raise RemoteCodeError(
            f"{folder / name} needs Python code that comes with the model ({files}), which was not run. "
            "If you have "
            "read and trust it, use the model from the hub with --set model.trust_code=COMMIT."
        )
    for key, value in settings_in(settings):
        elsewhere = [one for _, one in settings_in([value]) if isinstance(one, str) and set(one) & set("/:")]
        if elsewhere and "implementation" in key:
            raise RemoteCodeError(
                f'{folder / name} refers to code elsewhere by "{key}" ({elsewhere[0]!r}). Such code is never run.'
            )


def fingerprint(folder: Path) -> str:
    return fingerprints(folder)[0]


def fingerprints(folder: Path) -> tuple[str, dict[str, str]]:
    """Hash config, tokenizer, chat template and weights: all together, and each by its name. Files up to 2 GB are
    hashed completely, larger ones by a sample."""
    named = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    parts = {name: content_of(folder / name) if (folder / name).is_file() else b"" for name in named}
    parts["weights"] = b""
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        parts["weights"] += f"{file.name}:{size}".encode()
        parts["weights"] += sha256_of(file).encode() if size <= 2e9 else _sample(file, size)
    hashes = {name: hashlib.sha256(content).hexdigest()[:16] for name, content in parts.items()}
    return hashlib.sha256(b"".join(parts.values())).hexdigest()[:16], hashes


def _sample(file: Path, size: int) -> bytes:
    """Hash a megabyte at each of 64 positions, including the header."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        for place in range(64):
            opened.seek((size - 1_000_000) * place // 63)
            digest.update(opened.read(1_000_000))
    return digest.digest()


def pooling_of(folder: Path | None, config: ClassificationConfig) -> tuple[Pooling, str | None]:
    """The pooling over the model in `folder`, and a sentence where `auto` decided it and not the model's own code."""
    if config.pooling != "auto":
        return config.pooling, None
    report, modules = (None if folder is None else read_if_sound(folder / name) for name in (REPORT, MODULES))
    targets = report.get("targets") if isinstance(report, dict) else None
    if isinstance(targets, dict):
        return KNOWN.get(str(targets.get("pooling")), "own"), None
    parts = [one for one in modules if isinstance(one, dict)] if isinstance(modules, list) else []
    part = next((one for one in parts if str(one.get("type")).endswith(".Pooling")), None)
    if folder is None or part is None:
        return "own", None
    settings = read_if_sound(folder / Path(str(part.get("path"))).name / "config.json")
    if not isinstance(settings, dict):
        why = f"the model's {MODULES} names a pooling but not which, and the mean is the usual one"
        return "mean", f"the head reads the mean of all tokens: {why} (classification.pooling)"
    modes = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
    mode = " and ".join(modes) or str(settings.get("pooling_mode"))
    if mode not in KNOWN:
        return "own", f"the pooling of the model's {MODULES} is {mode}, which is not known; its own code's is used"
    read = "first token" if KNOWN[mode] == "cls" else f"{KNOWN[mode]} of all tokens"
    said = f"the head reads the {read}, as the model's {MODULES} says (classification.pooling)"
    return KNOWN[mode], None if KNOWN[mode] == "own" else said


KINDS = {"load_in_4bit": "nf4", "load_in_8bit": "int8"}
"""What bitsandbytes' settings say, by the key that is true."""


def quantization_problem(config: Mapping[str, Any]) -> str | None:
    """Why the quantised weights of a folder cannot be read; None where they can, or where there are none."""
    settings = config.get("quantization_config")
    if not settings:
        return None
    settings = settings if isinstance(settings, dict) else {}
    method = settings.get("quant_method") or ("bitsandbytes" if any(map(settings.get, KINDS)) else None)
    if method != "bitsandbytes":
        return (
            f"its weights are quantised by {method or 'an unknown method'}, which is not read. bitsandbytes' nf4 and "
            "int8, GGUF files and full-precision folders are; quantise the full-precision model with --quantize nf4."
        )
    if settings.get("load_in_4bit") and (kind := settings.get("bnb_4bit_quant_type", "fp4")) != "nf4":
        return f"its weights are bitsandbytes' {kind}, which is not read; nf4 and int8 are."
    return None


def stored_format(config: Mapping[str, Any]) -> str | None:
    """`nf4` or `int8` where bitsandbytes quantised the weights of a folder with this config.json."""
    settings = config.get("quantization_config")
    return next((kind for key, kind in KINDS.items() if settings.get(key)), None) if settings else None
