"""Ways in which an adapter's folder arrives damaged, beside those of tests/adapters/test_peft_format.py.

Each case changes a good folder of PEFT's two files in place. `known` says whether the folder alone, beside its base
model, gives the damage away: a flipped bit does not, and neither does a scale that is somebody else's.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
Settings, Tensors = dict[str, Any], dict[str, Tensor]


@dataclass(frozen=True)
class Damage:
    name: str
    apply: Callable[[Path], object]
    known: bool = True


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The parsed header and the bytes of the numbers."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(text: bytes, numbers: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + numbers


def config(**changes: Any) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        settings = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(settings | changes))

    return apply


def tensors(change: Callable[[Tensors], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        stored = load_file(folder / WEIGHTS)
        change(stored)
        save_file({key: value.contiguous() for key, value in stored.items()}, folder / WEIGHTS, {"format": "pt"})

    return apply


def raw(change: Callable[[bytes], bytes], file: str = WEIGHTS) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        (folder / file).write_bytes(change((folder / file).read_bytes()))

    return apply


def keys(change: Callable[[str], str]) -> Callable[[Path], object]:
    return tensors(lambda stored: replace_all(stored, {change(key): value for key, value in stored.items()}))


def replace_all(stored: Tensors, new: Tensors) -> None:
    stored.clear()
    stored.update(new)


def of(stored: Tensors, part: str) -> str:
    return sorted(key for key in stored if part in key)[0]


def set_one(part: str, change: Callable[[Tensor], Tensor]) -> Callable[[Path], object]:
    return tensors(lambda stored: stored.update({(key := of(stored, part)): change(stored[key].clone())}))


def drop(*parts: str) -> Callable[[Path], object]:
    return tensors(lambda stored: [stored.pop(key) for key in list(stored) if all(part in key for part in parts)])


def flip_bit(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[-2] ^= 0x10
    return bytes(changed)


def zipped(content: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data.pkl", b"cos\nsystem\n(S'true'\ntR.")
    return content + archive.getvalue()


def of_other_model(stored: Tensors) -> None:
    for key, value in list(stored.items()):
        wide = torch.zeros(*(size * 2 if size > 16 else size for size in value.shape))
        stored[key] = wide


def without_rank(stored: Tensors) -> None:
    stored.update({key: value[:0] if "lora_A" in key else value[:, :0] for key, value in stored.items()})


CAPITALS = "0.self_attn.q_proj.LORA_A"
LOOK_ALIKE = "0.self_attn.q_proj.lora_\u0410"
DAMAGES = [
    Damage("use_rslora switched on", config(use_rslora=True), known=False),
    Damage("another base model's name", config(base_model_name_or_path="somebody/else"), known=False),
    Damage("one bit flipped in the weights", raw(flip_bit), known=False),
    Damage("a whole layer missing", drop("layers.0", "q_proj")),
    Damage("all keys with a wrong prefix", keys(lambda key: key.replace("base_model.", "base_modle."))),
    Damage("no LoRA tensor at all", tensors(lambda t: replace_all(t, {}))),
    Damage("rank too small", config(r=2)),
    Damage("an unknown task_type", config(task_type="EVIL")),
    Damage("no target exists", config(target_modules=["nothing"])),
    Damage('megatron_core "os"', config(megatron_core="os")),
    Damage("truncated weights", raw(lambda content: content[: len(content) // 2])),
    Damage("truncated JSON", raw(lambda content: content[: len(content) // 2], CONFIG)),
    Damage("the shapes of another model", tensors(of_other_model)),
    Damage("float8 numbers", set_one("lora_A", lambda tensor: tensor.to(torch.float8_e4m3fn))),
    Damage("complex numbers", set_one("lora_A", lambda tensor: tensor.to(torch.complex64))),
    Damage("a header of 2 GB", raw(lambda content: struct.pack("<Q", 2 << 30) + content[8:])),
    Damage("a Cyrillic letter in a key", keys(lambda key: key.replace("0.self_attn.q_proj.lora_A", LOOK_ALIKE))),
    Damage("a key in capitals", keys(lambda key: key.replace("0.self_attn.q_proj.lora_A", CAPITALS))),
    Damage("factors of rank 0", tensors(without_rank)),
    Damage("a ZIP archive behind the numbers", raw(zipped)),
]  # fmt: skip
EXTRA = [
    Damage('alpha "32" as text', config(lora_alpha="32")),
    Damage(
        "a slow pattern behind one that matches", config(rank_pattern={"q_proj": 4, "v_proj": 4, r"(.|.)+[xyz]": 4})
    ),
    Damage("B doubled", set_one("lora_B", lambda tensor: 2 * tensor), known=False),
    Damage("a scale of 25 million by alpha_pattern", config(alpha_pattern={"q_proj": 1e8}), known=False),
    Damage("a setting twice", raw(lambda content: content.rstrip()[:-1] + b', "lora_alpha": 1}', CONFIG)),
    Damage("numbers as a table of settings", raw(lambda _: b"[1, 2]", CONFIG)),
]
"""What an earlier measurement tried besides."""

REGEXES = [
    r"(.|.)+[xyz]", r"([a-z_.0-9]+)+[!?]", r"(\w+\.?)+[!?]", r"((.|.)*)*[!?]", r"(.+)+\1[!?]", r"(?=(.+)+[!?])x",
    r"(.*?[a-z_.]){25}[!?]", r"([^!]+)+[!?]", r"((\w|_|\.)+)+[A-Z]", r"(?:q|q_|q_p|.|..)+[!?]",
    r"(?:(?:.?){30}.{0,30})+[!?]", r"(.{1,50}){1,50}[!?]", r"(\S+\S+)+[!?]", r"(.*)(.*)(.*)(.*)(.*)(.*)(.*)[!?]",
    r"(?:.*.*.*.*){8}[!?]", r"(.*.*)*[0-9][!?]", r"(?:.(?:.(?:.)*)*)*[!?]", r"(.+)+x!", r"(\S+)+[A-Z]",
    r"(?:(.)(?=.*[a-z]))+[!?](.*)*|(.|.)+[XYZ]",
]  # fmt: skip
"""Twenty expressions with which Python's re, and so PEFT, backtracks without end on a module's path."""
