"""What a model's folder holds, looked at before anything in it is handed to transformers.

Weights must be safetensors (no pickles), whole and not quantised; Python code that comes with a model is not run
unless its commit was named, and neither is code that a setting asks for from elsewhere.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from rankwise.errors import ModelError, RemoteCodeError, some
from rankwise.system.files import sha256_of
from rankwise.system.foreign_json import read_json as read_json


def inspect_folder(folder: Path, *, trusted: bool = False) -> None:
    """Refuse a folder that could not be loaded, or only by running what it brings."""
    config = read_json(folder / "config.json")
    refuse_vision(config, str(folder))
    if not any(folder.glob("*.safetensors")):
        pickled = some(sorted(path.name for path in folder.glob("*.bin")), 2)
        hint = (
            f" Its weights are pickles ({pickled}), which are never read; convert them to safetensors."
            if pickled
            else ""
        )
        raise ModelError(f"{folder} has no .safetensors weights.{hint}")
    if (folder / "adapter_config.json").exists():
        raise ModelError(f"{folder} holds an adapter beside its weights; give the folder of the base model alone.")
    if config.get("quantization_config"):
        raise ModelError(
            f"{folder} holds quantised weights, which cannot be adapted yet; give the full-precision model."
        )
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        settings = config if name == "config.json" else read_json(folder / name) if (folder / name).is_file() else {}
        _refuse_code(folder, name, settings, trusted or _is_native(config))


def refuse_vision(config: dict[str, Any], name: str) -> None:
    """A model of images, which would be refused later for its lack of a tokenizer or of weights that fit."""
    from transformers.models.auto import modeling_auto

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    if kind in modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES or "image_size" in config:
        raise ModelError(
            f"{name} is a vision model ({kind}). Vision models are not supported yet: rankwise trains causal language "
            f"models only. rankwise plan --model {name} counts its parameters."
        )


def _is_native(config: dict[str, Any]) -> bool:
    """Whether transformers has this architecture itself; then it is used, and the code beside the model is not."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return config.get("model_type") in CONFIG_MAPPING


def _refuse_code(folder: Path, name: str, settings: dict[str, Any], allowed: bool) -> None:
    if "--" in "".join(_texts(settings.get("auto_map"))):
        raise RemoteCodeError(f"{folder / name} asks for Python code of another repository. It is not run.")
    if "auto_map" in settings and not allowed:
        files = some(sorted(path.name for path in folder.glob("*.py"))) or str(settings["auto_map"])
        raise RemoteCodeError(
            f"{folder / name} asks for Python code that comes with the model ({files}). It is not run. "
            "If you have read it, take the model from the hub and name its commit with --set model.trust_code=COMMIT."
        )
    for key, value in _items(settings):
        elsewhere = [text for text in _texts(value) if set(text) & set("/:")] if "implementation" in key else []
        if elsewhere:
            raise RemoteCodeError(
                f'{folder / name} asks by "{key}" for code from elsewhere ({elsewhere[0]!r}). It is not run.'
            )


def _items(value: Any) -> list[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    here = list(value.items()) if isinstance(value, dict) else []
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return here + [item for part in inside for item in _items(part)]


def _texts(value: Any) -> list[str]:
    """Every text inside a value of JSON."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value] if isinstance(value, str) else [text for item in inside for text in _texts(item)]


def fingerprint(folder: Path) -> str:
    """Changes with the config, the tokenizer, the chat template or any weight: of a file up to 2 GB every byte counts,
    of a larger one a sample does.
    """
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        digest.update((folder / name).read_bytes() if (folder / name).is_file() else b"")
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        digest.update(sha256_of(file).encode() if size <= 2e9 else _sample(file, size))
    return digest.hexdigest()[:16]


def _sample(file: Path, size: int) -> bytes:
    """A megabyte at each of 64 places, the header among them."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        for place in range(64):
            opened.seek((size - 1_000_000) * place // 63)
            digest.update(opened.read(1_000_000))
    return digest.digest()
