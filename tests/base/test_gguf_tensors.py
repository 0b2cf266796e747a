"""A GGUF file whose tensors are not those of its model is refused by name, before anything is converted."""

from __future__ import annotations

import json
import resource
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rankwise.base.gguf import conversion
from rankwise.base.gguf.conversion import converted
from rankwise.base.gguf.files import GgufTensor, write_gguf
from rankwise.errors import ModelError, ResourceError
from rankwise.runs.records import StatusMessage, WarningMessage, silent
from rankwise.system.files import published

BLOCKS, HEADS, SHARED = 2, 4, 2
Q = "blk.0.attn_q.weight"


def as_stored(name, weight):
    """Queries and keys lie in GGUF with the halves of each head taken in turns."""
    heads = HEADS if "attn_q" in name else SHARED if "attn_k" in name else 0
    if not heads:
        return weight
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def tensors_of(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, BLOCKS)
    found = {}
    for path, value in model.named_parameters():
        stem, _, kind = path.rpartition(".")
        name = f"{names.get_name(stem)}.{kind}"
        found[name] = as_stored(name, value.detach().numpy())
    return found


@pytest.fixture(scope="module")
def tensors(tiny_folder):
    return tensors_of(tiny_folder)


@pytest.fixture(scope="module")
def words(tiny_folder):
    return json.loads((tiny_folder / "tokenizer.json").read_text())["model"]


@pytest.fixture
def write(tmp_path, tensors, words, monkeypatch):
    """A whole file, or one with other settings and tensors; the cache is the test's own."""
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))

    def written(family="llama", without=(), more=None, **settings):
        file = tmp_path / "tiny.gguf"
        writer = gguf.GGUFWriter(file, family)
        sizes = {
            "embedding_length": 32, "block_count": BLOCKS, "attention.head_count": HEADS,
            "attention.head_count_kv": SHARED, "context_length": 256, "feed_forward_length": 48,
            "vocab_size": len(words["vocab"]),
        }  # fmt: skip
        for key, value in (sizes | settings).items():
            writer.add_uint32(f"{family}.{key}", value)
        writer.add_float32(f"{family}.attention.layer_norm_rms_epsilon", 1e-6)
        writer.add_string("general.name", "tiny")
        writer.add_string("tokenizer.ggml.model", "gpt2")
        writer.add_array("tokenizer.ggml.tokens", list(words["vocab"]))
        writer.add_array("tokenizer.ggml.token_type", [1] * len(words["vocab"]))
        writer.add_array("tokenizer.ggml.merges", [" ".join(pair) for pair in words["merges"]])
        for key, value in (("bos", 1), ("eos", 2), ("padding", 2), ("unknown", 0)):
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", value)
        for name, value in (tensors | (more or {})).items():
            if name not in without:
                writer.add_tensor(name, np.ascontiguousarray(value))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file

    return written


def renamed(file, old, new):
    assert len(old) == len(new)
    content = file.read_bytes()
    assert content.count(old.encode()) == 1
    file.write_bytes(content.replace(old.encode(), new.encode()))


def refusal(file):
    """Nothing was begun."""
    heard = []
    with pytest.raises(ModelError) as caught:
        converted(file, heard.append)
    assert not any(isinstance(event, StatusMessage) for event in heard)
    assert not list(file.parent.glob("cache/models/gguf-*"))
    assert str(file) in str(caught.value)
    return str(caught.value)


def test_a_whole_file_becomes_the_model_that_was_written(write, tiny_folder):
    heard = []
    folder = converted(write(), heard.append)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(one, dtype=torch.float32) for one in (folder, tiny_folder))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert [type(event) for event in heard] == [StatusMessage]


def test_a_missing_tensor_is_named_also_where_the_file_was_converted_before(write, monkeypatch):
    file = write()
    renamed(file, Q, "blk.9.attn_q.weight")
    said = refusal(file)
    assert f"1 tensor is missing: '{Q}'." in said and "not part of this model: 'blk.9.attn_q.weight'" in said
    folder = file.parent / "cache" / "models" / f"gguf-{conversion.name_of_content(file)}"
    folder.mkdir(parents=True)
    with pytest.raises(ModelError, match="1 tensor is missing"):
        converted(file, silent)


def test_a_tensor_of_another_shape_is_named(write):
    file = write(more={Q: np.zeros((16, 64), np.float32)})
    assert f'tensor "{Q}" has the shape (16, 64), but the model needs (32, 32).' in refusal(file)


def test_all_that_is_wrong_is_told_at_once(write):
    file = write(without=("blk.1.ffn_up.weight", "output_norm.weight"), more={Q: np.zeros((16, 64), np.float32)})
    said = refusal(file)
    assert "2 tensors are missing: 'blk.1.ffn_up.weight', 'output_norm.weight'." in said
    assert "the shape (16, 64)" in said


def test_what_is_computed_from_settings_may_be_left_over_and_is_warned_of(write):
    heard = []
    converted(write(more={"rope_freqs.weight": np.ones(4, np.float32)}), heard.append)
    (warned,) = [event.text for event in heard if isinstance(event, WarningMessage)]
    assert warned.startswith("rope_freqs.weight of tiny.gguf is ignored")


def test_a_model_of_another_family_in_which_a_weight_stayed_random_is_refused(write, monkeypatch):
    """Where no shapes are known, the loading report says it."""
    monkeypatch.setattr("rankwise.base.gguf.tensors.FAMILIES", {})
    file = write(without=("blk.1.ffn_up.weight",))
    with pytest.raises(ModelError, match=r"1 of the model's weights are missing: model\.layers\.1\.mlp\.up_proj"):
        converted(file, silent)
    assert not [path for path in file.parent.glob("cache/models/*") if path.name.startswith("gguf-")]


@pytest.mark.parametrize(
    "error", [struct.error("unpack"), OverflowError("big"), ZeroDivisionError("by 0"), RuntimeError("size mismatch"),
              Exception("a tokenizer's"), AttributeError(), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_whatever_the_converter_raises_names_the_file(write, monkeypatch, error):
    def broken(*given, **settings):
        raise error

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", broken)
    file = write()
    with pytest.raises(ModelError) as caught:
        converted(file, silent)
    assert str(caught.value).startswith(f"{file} cannot be used: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(("room", "side"), [(700, 32), (9000, 32), (600, 8), (900, 8)])
def test_a_disk_that_is_full_is_said_while_a_file_is_written(room: int, side: int, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: of small tensors numpy says nothing of either."""
    tensors = [GgufTensor(f"t{at}", (side, side), "F32", lambda: torch.ones(side, side)) for at in range(3)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(ResourceError, match="no space"), published(tmp_path / "out") as folder:
            write_gguf(folder / "a.gguf", "llama", {}, tensors)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
