"""Random adapters on tiny models, their exports, and faults planted into them: what verification must and must not see.

Engines run in this process, through the same functions as otherwise in a child, since a child takes seconds to start.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from conftest import tiny_model
from rankwise.adapters.adalora import AdaLoRA
from rankwise.adapters.formats.peft import write_peft
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.exporting.engine_process import EngineFailure, EngineReplies
from rankwise.exporting.engines.engine import Package
from rankwise.methods.inject import inject

ADAPTER, MODEL = "adapter_model.safetensors", "model.safetensors"


def ask_here(engine: Package, python: str, request: dict, seconds: float = 0) -> EngineReplies | EngineFailure:
    """In place of a child process."""
    try:
        reply = import_module(engine.file).answer(
            {"threads": torch.get_num_threads()} | json.loads(json.dumps(request))
        )
    except Exception as error:
        return EngineFailure(f"{engine.name} says: {type(error).__name__}: {error}")
    return EngineReplies.model_validate(reply)


def base_folder(folder: Path, architecture: str, tokenizer, seed: int = 0) -> Path:
    """A tiny model with its tokenizer, made once."""
    home = folder / f"{architecture}-{seed}"
    if not home.exists():
        tiny_model(architecture, vocab=len(tokenizer), seed=seed).save_pretrained(home)
        tokenizer.save_pretrained(home)
    return home


def random_adapter(folder: Path, base: Path, architecture: str, tokenizer, seed: int, **settings) -> Path:
    """An adapter in PEFT's format whose change is as large as the layers' own weights allow without chaos."""
    model = tiny_model(architecture, vocab=len(tokenizer))
    without = settings.pop("rank_0", None)
    adapters = inject(model, (AdaLoraConfig if settings.get("method") == "adalora" else LoraConfig)(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        for path, adapter in adapters.adapters().items():
            for part in (one for one in adapter.modules() if isinstance(one, AdaLoRA)):
                part.decided = True
                part.P.mul_(10)
                if path.endswith(without or " "):
                    part.strength.zero_()
    write_peft(adapters, folder, base_model=str(base))
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / file, folder / file)
    return folder


def _rewritten(folder: Path, change: Callable[[dict], dict]) -> None:
    file = next(folder / name for name in (ADAPTER, MODEL) if (folder / name).is_file())
    tensors = change(load_file(file))
    save_file({key: value.contiguous() for key, value in tensors.items()}, file, metadata={"format": "pt"})


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER).is_file()


def _changed(tensors: dict, base: Path) -> dict:
    """Of a merged model, what was added to each weight of the base."""
    own = load_file(base / MODEL)
    return {key: value - own[key] for key, value in tensors.items() if not torch.equal(value, own[key])}


def scale_doubled(folder: Path, base: Path, other: Path) -> None:
    if _is_adapter(folder):
        _rewritten(
            folder, lambda tensors: {k: v * 2 if "lora_B" in k or "embedding_B" in k else v for k, v in tensors.items()}
        )
    else:
        _rewritten(folder, lambda tensors: tensors | {k: tensors[k] + v for k, v in _changed(tensors, base).items()})


def layer_dropped(folder: Path, base: Path, other: Path) -> None:
    if _is_adapter(folder):

        def without(tensors: dict) -> dict:
            gone = sorted({key.rpartition(".lora_")[0] for key in tensors})[-1]
            return {key: value for key, value in tensors.items() if not key.startswith(gone + ".lora_")}
    else:

        def without(tensors: dict) -> dict:
            gone = sorted(_changed(tensors, base))[-1]
            return tensors | {gone: load_file(base / MODEL)[gone]}

    _rewritten(folder, without)


def factor_transposed(folder: Path, base: Path, other: Path) -> None:
    """Of a square layer, whose shapes do not tell."""
    if _is_adapter(folder):

        def turned(tensors: dict) -> dict:
            pairs = [(key, key.replace("lora_A", "lora_B")) for key in sorted(tensors) if "lora_A.weight" in key]
            a, b = next(pair for pair in pairs if tensors[pair[0]].shape == tensors[pair[1]].T.shape)
            return tensors | {a: tensors[b].T, b: tensors[a].T}
    else:

        def turned(tensors: dict) -> dict:
            key, value = next((k, v) for k, v in sorted(_changed(tensors, base).items()) if v.shape == v.T.shape)
            return tensors | {key: tensors[key] - value + value.T}

    _rewritten(folder, turned)


def other_template(folder: Path, base: Path, other: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|im_end|>\\n", "<|im_end|>").replace("<|im_end|>\n", "<|im_end|>"))


def other_stop_token(folder: Path, base: Path, other: Path) -> None:
    name = "tokenizer_config.json" if _is_adapter(folder) else "generation_config.json"
    settings = json.loads((folder / name).read_text())
    changed = {"eos_token": "<|endoftext|>"} if _is_adapter(folder) else {"eos_token_id": 0}
    (folder / name).write_text(json.dumps(settings | changed))


def other_base(folder: Path, base: Path, other: Path) -> None:
    if _is_adapter(folder):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(other)}))
    else:
        theirs = load_file(other / MODEL)
        _rewritten(folder, lambda tensors: theirs | {k: theirs[k] + v for k, v in _changed(tensors, base).items()})


FAULTS = {
    "scale doubled": scale_doubled,
    "one layer dropped": layer_dropped,
    "a factor transposed": factor_transposed,
    "wrong template": other_template,
    "wrong stop token": other_stop_token,
    "adapter of another base": other_base,
}
LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GPT2 = ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj")
KINDS: dict[str, tuple[str, dict]] = {
    "LoRA": ("llama", {"rank": 4, "targets": LLAMA}),
    "scale of another alpha": ("llama", {"rank": 3, "alpha": 7.5, "targets": LLAMA}),
    "rank pattern": ("llama", {"rank": 2, "targets": LLAMA, "rank_pattern": {"q_proj": 5, "down_proj": 1}}),
    "alpha pattern": ("llama", {"rank": 3, "targets": LLAMA, "alpha_pattern": {"o_proj": 0.5, "up_proj": 12.0}}),
    "few layers": ("llama", {"rank": 4, "targets": ("q_proj", "v_proj", "o_proj")}),
    "embeddings": ("llama", {"rank": 3, "targets": ("embed_tokens", "q_proj", "o_proj")}),
    "high rank": ("llama", {"rank": 32, "targets": LLAMA}),
    "Conv1D": ("gpt2", {"rank": 3, "targets": GPT2}),
    "Conv1D with patterns": ("gpt2", {"rank": 2, "alpha": 5.0, "targets": GPT2, "rank_pattern": {"c_attn": 4}}),
    "AdaLoRA": ("llama", {"method": "adalora", "budget": 3, "targets": LLAMA}),
    "AdaLoRA without rank in some layers": ("llama", {"method": "adalora", "targets": LLAMA, "rank_0": "o_proj"}),
    "DoRA": ("llama", {"rank": 4, "targets": LLAMA, "dora": True}),
}
