"""A GGUF header: the shape that the file's weights have, and every lie of a header refused before it is followed."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from kit.planning_models import IDS, SMALL, on_meta, refusal, shape_of, written_config
from rankwise.base.gguf.header import FAMILIES, read_gguf_header
from rankwise.errors import ModelError
from rankwise.forward.model_shape import shape_of_config

OF_FAMILY = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3, wide", "gemma2": "gemma2", "gemma3": "gemma3_text",
    "stablelm": "stablelm", "phi3": "phi3", "gpt2": "gpt2",
}  # fmt: skip
"""Which of the small models is written as which family of GGUF."""


def write_gguf(file: Path, family: str, name: str, *, leave_out: str = "", more: dict[str, int] | None = None) -> dict:
    """The small model `name` without its values, in GGUF's names; returns its config.json."""
    config = written_config(*SMALL[name])
    if family == "gpt2":
        sizes = (config["n_embd"], config["n_layer"], config["n_head"], config["n_positions"], 4 * config["n_embd"])
    else:
        sizes = (
            config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"],
            config["max_position_embeddings"], config["intermediate_size"],
        )  # fmt: skip
    width, blocks, heads, context, inner = sizes
    settings = {
        "embedding_length": width, "block_count": blocks, "attention.head_count": heads, "context_length": context,
        "feed_forward_length": inner, "attention.head_count_kv": config.get("num_key_value_heads") or heads,
        "vocab_size": config["vocab_size"],
    }  # fmt: skip
    if family in ("qwen3", "gemma2", "gemma3"):
        settings["attention.key_length"] = config["head_dim"]
    writer = gguf.GGUFWriter(file, family)
    for key, value in (settings | (more or {})).items():
        if key != leave_out:
            writer.add_uint32(f"{family}.{key}", value)
    writer.add_array("tokenizer.ggml.tokens", [f"word {number}" for number in range(config["vocab_size"])])
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, family.upper()), blocks)
    for path, parameter in on_meta(config).named_parameters():
        stem, _, kind = path.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", np.zeros(tuple(parameter.shape), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return config


@pytest.mark.parametrize("family", OF_FAMILY)
def test_a_header_tells_the_shape_that_loading_would_build(family: str, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    config = write_gguf(file, family, OF_FAMILY[family])
    shape = shape_of(str(file))
    assert shape.layers == shape_of_config(config, "", "config.json").layers
    assert shape.name == "model.gguf"
    if family != "gpt2":  # the converter knows GPT-2's positions from the weights alone
        loaded = load_gguf_checkpoint(str(file))["config"] | IDS
        assert shape.parameters == sum(parameter.numel() for parameter in on_meta(loaded).parameters())


def test_every_family_that_is_read_is_tested() -> None:
    assert OF_FAMILY.keys() == FAMILIES.keys()


def test_a_head_of_its_own_is_seen(tmp_path: Path) -> None:
    for name in ("llama", "llama, tied"):
        write_gguf(tmp_path / "model.gguf", "llama", name)
        head = shape_of(str(tmp_path / "model.gguf")).layers[-1]
        assert head.shares == ("model.embed_tokens" if "tied" in name else None)


@pytest.mark.parametrize("missing", ["embedding_length", "block_count", "attention.head_count", "context_length"])
def test_a_setting_that_is_missing_is_named(missing: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", "llama", "llama", leave_out=missing)
    with pytest.raises(ModelError, match=rf'model\.gguf.*\n?.*setting "llama\.{missing}" is missing'):
        shape_of(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"block_count": 2}, "but the tensors have"),
        ({"feed_forward_length": 45}, "but the tensors have"),
        ({"attention.head_count": 5}, "does not divide"),
        ({"block_count": 4_000_000_000}, '"num_hidden_layers" is 4000000000'),
    ],
    ids=str,
)
def test_settings_that_are_not_those_of_the_tensors_are_refused(more: dict, told: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", "llama", "llama", more=more)
    with pytest.raises(ModelError, match=told):
        shape_of(str(tmp_path / "model.gguf"))


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def header(*settings: bytes, tensors: bytes = b"", counts: tuple[int, int] | None = None, version: int = 3) -> bytes:
    many = counts if counts is not None else (0, len(settings))
    return b"GGUF" + struct.pack("<IQQ", version, *many) + b"".join(settings) + tensors


def said(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


NAMED = said("general.architecture", 8, text("llama"))
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cannot be read as a GGUF file"),
    "another kind": (b"PK\x03\x04" + b"\0" * 100, "does not begin with GGUF"),
    "only the beginning": (b"GGUF", "in the middle of its header"),
    "an old version": (header(NAMED, version=1), "its version is 1"),
    "the high byte first": (b"GGUF" + struct.pack(">IQQ", 3, 0, 1) + NAMED, "its version is 50331648"),
    "2^63 settings": (header(counts=(0, 2**63)), "9,223,372,036,854,775,808 settings"),
    "2^63 tensors": (header(counts=(2**63, 0)), "9,223,372,036,854,775,808 tensors"),
    "more settings than there are": (header(NAMED, counts=(0, 9)), "in the middle of its header"),
    "more tensors than there are": (header(NAMED, counts=(9, 1)), "in the middle of its header"),
    "a key without end": (header(struct.pack("<Q", 2**62) + b"x"), "the name of a setting has"),
    "a key of nothing": (header(struct.pack("<Q", 0)), "the name of a setting has 0 bytes"),
    "a text without end": (header(said("a", 8, struct.pack("<Q", 2**62))), "in the middle of its header"),
    "a text that is none": (header(said("a", 8, struct.pack("<Q", 2) + b"\xff\xfe")), "is not UTF-8"),
    "a type that is none": (header(said("a", 77, b"")), "setting 'a' has the unknown type 77"),
    "an array of arrays": (header(said("a", 9, struct.pack("<IQ", 9, 5))), "an array of the unknown type 9"),
    "an array without end": (header(said("a", 9, struct.pack("<IQ", 4, 2**62))), "in the middle of its header"),
    "texts without end": (header(said("a", 9, struct.pack("<IQ", 8, 2**62))), "announces 4,611,686,018,427,387,904"),
    "texts that are not there": (header(said("a", 9, struct.pack("<IQ", 8, 999_999))), "in the middle of its header"),
    "a text in a list without end": (
        header(said("a", 9, struct.pack("<IQQ", 8, 2, 2**63) + b"x" * 64)), "in the middle of its header"),
    "no architecture": (header(said("a", 4, struct.pack("<I", 1))), '"general.architecture" is missing'),
    "an architecture that is a number": (header(said("general.architecture", 4, b"\0\0\0\1")), "architecture 16777216"),
    "another architecture": (header(said("general.architecture", 8, text("mamba"))), "'mamba' is not supported"),
    "one part of several": (header(NAMED, said("split.count", 2, struct.pack("<H", 3))), "is one of 3 parts"),
    "no settings": (header(NAMED), '"llama.block_count" is missing'),
    "a list for a number": (
        header(NAMED, said("llama.block_count", 9, struct.pack("<IQII", 4, 2, 3, 3))), "is [3, 3]: a whole number"),
    "a float for a number": (header(NAMED, said("llama.block_count", 6, struct.pack("<f", 3.5))), "is 3.5: a whole"),
    "a tensor of nine dimensions": (
        header(NAMED, tensors=text("t") + struct.pack("<I", 9), counts=(1, 1)), "has 9 dimensions"),
    "a tensor of nothing": (
        header(NAMED, tensors=text("t") + struct.pack("<IQIQ", 1, 0, 0, 0), counts=(1, 1)), "impossible shape (0,)"),
    "a tensor without end": (
        header(NAMED, tensors=text("t") + struct.pack("<IQIQ", 1, 2**62, 0, 0), counts=(1, 1)), "impossible shape"),
}  # fmt: skip


@pytest.mark.timeout(60)  # where one hangs
@pytest.mark.parametrize("case", HOSTILE)
def test_a_header_that_lies_is_refused_at_once(case: str, tmp_path: Path) -> None:
    content, told = HOSTILE[case]
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    said = refusal(str(file))
    assert str(file) in said and told in said


def test_every_beginning_of_a_file_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "whole.gguf", "llama", "llama")
    content = (tmp_path / "whole.gguf").read_bytes()
    end = content.rindex(b"blk.2")
    for length in range(0, end, 97):
        (tmp_path / "cut.gguf").write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"cut\.gguf"):
            shape_of(str(tmp_path / "cut.gguf"))


def test_a_vocabulary_of_a_quarter_million_is_passed_over_quickly(tmp_path: Path) -> None:
    words = b"".join(text(f"piece {number}") for number in range(260_000))
    list_of = struct.pack("<IQ", 8, 260_000) + words
    content = header(said("tokenizer.ggml.tokens", 9, list_of), said("tokenizer.ggml.merges", 9, list_of), NAMED)
    (tmp_path / "model.gguf").write_bytes(content)
    found = read_gguf_header(tmp_path / "model.gguf")
    assert found.settings == {"general.architecture": "llama"}
