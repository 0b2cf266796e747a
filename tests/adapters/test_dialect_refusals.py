"""What is damaged, foreign or unknown in another tool's adapter is refused by name, all of it at once."""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import tiny_model
from kit.dialect_files import WRITERS, Written, mlx
from rankwise.adapters.formats.dialects import detect, read_adapter
from rankwise.adapters.targets import host_view
from rankwise.errors import AdapterError

Change = Callable[[dict[str, Tensor]], object]


def stored(written: Written) -> Path:
    return detect(written.path).source.tensors


def damaged(written: Written, change: Change) -> None:
    file = stored(written)
    tensors = load_file(file)
    change(tensors)
    save_file({key: value.contiguous() for key, value in tensors.items()}, file)


def refused(written: Written) -> str:
    with pytest.raises(AdapterError) as error:
        read_adapter(written.path, host_view(written.model))
    return str(error.value)


SAFETENSORS = [name for name in WRITERS if not name.startswith("gguf")]


LEAVES = ("q_proj", "down_proj", "embed_tokens")


def first(tensors: dict[str, Tensor], ending: str = "") -> str:
    return next(key for key in sorted(tensors) if key.endswith(ending) and tensors[key].ndim > 1)


def drop(tensors: dict[str, Tensor]) -> None:
    del tensors[first(tensors)]


def spoil(tensors: dict[str, Tensor]) -> None:
    tensors[first(tensors)].view(-1)[1] = float("nan")


def widen(tensors: dict[str, Tensor]) -> None:
    key = first(tensors)
    tensors[key] = torch.cat([tensors[key], tensors[key]], 1)


def number(tensors: dict[str, Tensor]) -> None:
    key = first(tensors)
    tensors[key] = tensors[key].to(torch.int32)


def strange(tensors: dict[str, Tensor]) -> None:
    tensors["something.bias"] = torch.ones(3)


def move(tensors: dict[str, Tensor]) -> None:
    """To a block that the model does not have."""
    for key in [key for key in tensors if ".1." in key]:
        tensors[key.replace(".1.", ".7.")] = tensors.pop(key)


@pytest.mark.parametrize("name", SAFETENSORS)
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (drop, "has no lora"), (spoil, "NaN or infinity"), (widen, "shape"), (number, "not a floating-point number"),
        (strange, '"something.bias"'), (move, "the base model does not have"),
    ],
)  # fmt: skip
def test_damaged_tensors_are_refused_by_name(name: str, change: Change, named: str, tmp_path: Path) -> None:
    written = WRITERS[name](tmp_path)
    file = stored(written)
    key = first(load_file(file))
    damaged(written, change)
    message = refused(written)
    assert named in message
    assert str(file) in message
    assert change in (strange, move) or any(leaf in key and leaf in message for leaf in LEAVES)


def test_all_layers_that_the_model_lacks_are_named_at_once(tmp_path: Path) -> None:
    written = mlx(tmp_path)
    damaged(written, lambda tensors: tensors.update(
        {f"model.layers.{9 + at}.self_attn.q_proj.{part}": tensors[f"model.layers.0.self_attn.q_proj.{part}"].clone()
         for at in range(3) for part in ("lora_a", "lora_b")}
    ))  # fmt: skip
    message = refused(written)
    assert all(f"model.layers.{at}.self_attn.q_proj" in message for at in (9, 10, 11))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"fine_tune_type": "full"}, "mlx_lm.fuse"),
        ({"lora_parameters": {"rank": 3, "scale": 2.0, "alpha": 16}}, "lora_parameters.alpha"),
        ({"lora_parameters": {"rank": 3}}, "lora_parameters.scale"),
        ({"lora_parameters": {"rank": 3, "scale": 0}}, "lora_parameters.scale"),
        ({"lora_parameters": {"rank": 3, "scale": float("nan")}}, "lora_parameters.scale"),
        ({"lora_parameters": {"rank": 3, "scale": 2.0, "bias": True}}, "bias"),
        ({"lora_parameters": {"rank": 4, "scale": 2.0}}, "rank 4"),
        ({"fine_tune_type": "dora"}, "has no m"),
    ],
)
def test_settings_of_mlx_are_checked(settings: dict[str, Any], named: str, tmp_path: Path) -> None:
    assert named in refused(mlx(tmp_path, **settings))


def test_experts_of_mlx_are_refused_by_name(tmp_path: Path) -> None:
    written = mlx(tmp_path)
    stacked = {"lora_a": torch.ones(4, 3, 32), "lora_b": torch.ones(4, 32, 3)}
    damaged(written, lambda tensors: tensors.update({f"x.switch.{part}": one for part, one in stacked.items()}))
    assert "a mixture of 4 experts" in refused(written)


def gguf_file(path: Path, tensors: dict[str, Tensor], **settings: Any) -> Path:
    from gguf import GGUFWriter

    architecture = settings.pop("architecture", "llama")
    writer = GGUFWriter(path, architecture)
    for key, value in {"general.type": "adapter", "adapter.type": "lora", **settings}.items():
        (writer.add_string if isinstance(value, str) else writer.add_float32)(key, value)
    for key, value in tensors.items():
        writer.add_tensor(key, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


A, B = torch.ones(2, 32), torch.ones(32, 2)
GOOD = {"blk.0.attn_output.weight.lora_a": A, "blk.0.attn_output.weight.lora_b": B}


@pytest.mark.parametrize(
    ("tensors", "settings", "named"),
    [
        (GOOD, {"general.type": "model"}, "no LoRA adapter"),
        (GOOD, {"architecture": "rwkv6"}, "rwkv6"),
        (GOOD, {"adapter.lora.alpha": float("nan")}, "adapter.lora.alpha"),
        (GOOD, {"adapter.alora.tokens": "1"}, "adapter.alora.tokens"),
        ({"blk.0.attn_output.weight.lora_a": A}, {}, "has no lora_b"),
        ({**GOOD, "blk.0.attn_norm.weight": torch.ones(32)}, {}, "blk.0.attn_norm.weight"),
        ({**GOOD, "blk.9.ffn_up.weight.lora_a": A, "blk.9.ffn_up.weight.lora_b": B}, {}, "blk.9.ffn_up"),
        ({"blk.0.attn_output.weight.lora_a": A, "blk.0.attn_output.weight.lora_b": B.T.contiguous()}, {}, "do not fit"),
        ({"blk.0.attn_q.weight.lora_a": A, "blk.0.attn_q.weight.lora_b": torch.ones(30, 2)}, {}, "heads of size 8"),
        ({"blk.0.attn_output.weight.lora_a": A * float("inf"), "blk.0.attn_output.weight.lora_b": B}, {}, "infinity"),
    ],
)
def test_damaged_gguf_files_are_refused_by_name(
    tensors: dict[str, Tensor], settings: dict[str, Any], named: str, tmp_path: Path
) -> None:
    file = gguf_file(tmp_path / "a.gguf", tensors, **settings)
    with pytest.raises(AdapterError, match=r"(?s).*") as error:
        read_adapter(file, host_view(tiny_model("llama")))
    assert named in str(error.value)


def test_a_gguf_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    file = gguf_file(tmp_path / "a.gguf", GOOD)
    whole = file.read_bytes()
    for size in (6, 40, len(whole) // 2, len(whole) - 80):
        file.write_bytes(whole[:size])
        with pytest.raises(AdapterError, match=r"a\.gguf"):
            read_adapter(file, host_view(tiny_model("llama")))


@pytest.mark.parametrize("name", ["adapter.bin", "lora.pt", "a.ckpt", "adapters.npz", "renamed.safetensors"])
def test_pickled_files_are_refused_with_a_command_that_rewrites_them(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if name.endswith("npz"):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x.npy", b"")
    else:
        torch.save({"model": {"x.lora_A": torch.ones(2, 2)}}, file)
    for path in (file, tmp_path):
        with pytest.raises(AdapterError, match="python -c") as error:
            read_adapter(path)
        assert str(file) in str(error.value)


def test_pickled_weights_beside_settings_are_refused_too(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors"):
        read_adapter(tmp_path)


def header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


@pytest.mark.parametrize(
    "content",
    [
        b"", b"abc", header(b"{}", 1 << 60), header(b"[]"), header(b"{"), header(b"[" * 100_000), header(b"\xff\xfe"),
        header(b'{"a": 1}'), header(b'{"a": {"dtype": "F32"}}'), header(b'{"__metadata__": {"a": 1}}'),
        header(b'{"x.lora_A": {"dtype": "F32", "shape": [2, -2], "data_offsets": [0, 16]}}'),
        header(b'{"x.lora_A": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 9999]}}'),
        header(b'{"a.lora_A": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a.lora_A": {}}'),
        header(b'{"base_model.model.q.lora_A.weight": {"dtype": "F32", "shape": [], "data_offsets": [0, 0]}}'),
        header(b'{"q.lora_a": {"dtype": "F32", "shape": [], "data_offsets": [0, 0]}}'),
        header(b'{"model.embed.weight": {"dtype": "F32", "shape": [], "data_offsets": [0, 0]}}'),
    ],
)  # fmt: skip
def test_no_content_of_a_file_is_more_than_an_adapter_error(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    file.write_bytes(content)
    with pytest.raises(AdapterError, match=r"lora\.safetensors"):
        read_adapter(file)


def test_a_folder_of_several_adapters_asks_for_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        gguf_file(tmp_path / f"{name}.gguf", GOOD)
    with pytest.raises(AdapterError, match=r"name one: .*a\.gguf"):
        read_adapter(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match="has no adapter"):
        read_adapter(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("base_model.model.q.lora_A.weight", "the names of PEFT, but there is no adapter_config.json"),
        ("q.lora_a", "the names of mlx-lm, but there is no adapter_config.json"),
        ("lora_te_q.lora_down.weight", "docs/importing.md says how to give it PEFT's names"),
    ],
)
def test_a_file_without_settings_says_whose_it_may_be(name: str, said: str, tmp_path: Path) -> None:
    save_file({name: torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    for path in (tmp_path, tmp_path / "lora.safetensors"):
        with pytest.raises(AdapterError, match=re.escape(said)):
            read_adapter(path)
