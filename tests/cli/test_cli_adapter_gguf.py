"""An adapter of a GGUF base names what peft can load, and nobody asks a hub for the file's name."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from kit.command import done, printed, rankwise

HEADS = {"attn_q": 4, "attn_k": 2}
SIZES = {
    "embedding_length": 32, "block_count": 2, "attention.head_count": 4, "attention.head_count_kv": 2,
    "context_length": 256, "feed_forward_length": 48,
}  # fmt: skip


def write_gguf(folder: Path, file: Path) -> None:
    """The tiny Llama with its tokenizer; GGUF takes the two halves of each head of queries and keys in turns."""
    words = json.loads((folder / "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(file, "llama")
    for key, value in (SIZES | {"vocab_size": len(words["vocab"])}).items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_array("tokenizer.ggml.tokens", list(words["vocab"]))
    writer.add_array("tokenizer.ggml.token_type", [1] * len(words["vocab"]))
    writer.add_array("tokenizer.ggml.merges", [" ".join(pair) for pair in words["merges"]])
    for key, number in (("bos", 1), ("eos", 2), ("padding", 2), ("unknown", 0)):
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", number)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, SIZES["block_count"])
    for path, weight in AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters():
        stem, _, kind = path.rpartition(".")
        name, value = f"{names.get_name(stem)}.{kind}", weight.detach().numpy()
        heads = next((count for part, count in HEADS.items() if part in name), None)
        if heads is not None:
            value = value.reshape(heads, 2, -1, value.shape[-1]).swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(params=["none"])
def trained(tiny_folder, tmp_path, monkeypatch, request):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_gguf(tiny_folder, tmp_path / "tiny.gguf")
    rows = [{"prompt": f"What is land {n}?", "completion": f"It is town {n}."} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--data", "rows.jsonl", "--steps", 4, "--batch-size", 2, "--learning-rate", 0.02)
    result = done("train", "--model", "tiny.gguf", "--quantize", request.param, "--run", "mine", *words)
    return result


def test_peft_loads_an_adapter_whose_base_was_a_gguf_file(trained, tmp_path):
    folder = tmp_path / "runs" / "mine" / "adapter"
    base = Path(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])
    assert base.is_absolute() and base.parent == tmp_path / "cache" / "models"
    ids = torch.arange(48).reshape(2, 24)
    with torch.no_grad():
        adapted = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(input_ids=ids).logits
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()(input_ids=ids).logits
    assert (adapted - plain).abs().max() > 1e-3 * plain.abs().max()


@pytest.mark.parametrize("trained", ["auto"], indirect=True)
def test_an_adapter_over_a_file_as_it_lies_names_the_file(trained, tmp_path):
    assert "PEFT cannot read GGUF" in trained.stderr and "--format gguf-lora" in trained.stderr
    folder = tmp_path / "runs" / "mine" / "adapter"
    text = (folder / "README.md").read_text()
    assert "GGUF file tiny.gguf as it lies (F32)" in text and "--base-model" in text and "--format merged" in text
    assert "base_model:" not in text and str(tmp_path) not in text
    named = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(tmp_path / "tiny.gguf") and not (tmp_path / "cache" / "models").exists()
    words = ("--prompt", "What is land 1?", "--max-new-tokens", 4, "--json")
    answers = [json.loads(rankwise("generate", name, *words).stdout)["answer"] for name in (folder, "mine")]
    assert answers[0] == answers[1]
    facts = printed("export", "mine", "--to", "whole", "--format", "merged")
    assert facts["dtype"] == "float32" and facts["logits_difference"] < 1e-4 < facts["logits_change"]
    recipe = done("export", "mine", "--to", "lora.gguf", "--format", "gguf-lora").stdout.splitlines()[-1]
    assert "llama-cli -m tiny.gguf --lora lora.gguf -cnv" in recipe
    assert r"printf 'FROM tiny.gguf\nADAPTER lora.gguf\n' > Modelfile" in recipe


def test_training_and_the_card_say_what_to_do_where_the_converted_copy_is_gone(trained, tmp_path):
    assert "PEFT cannot read GGUF" in trained.stderr and "--format merged" in trained.stderr
    text = (tmp_path / "runs" / "mine" / "adapter" / "README.md").read_text()
    assert "GGUF file tiny.gguf" in text and "--base-model" in text and "--format merged" in text
    assert "base_model:" not in text and str(tmp_path) not in text
    (tmp_path / "cache").rename(tmp_path / "cleaned")
    words = ("generate", "runs/mine/adapter", "--prompt", "What is land 1?", "--max-new-tokens", 4, "--json")
    gone = rankwise(*words)
    assert gone.exit_code == 2 and "which was not found" in gone.stderr and "--base-model" in gone.stderr
    again = done(*words, "--base-model", "tiny.gguf")
    assert json.loads(again.stdout)["answer"] == json.loads(rankwise("generate", "mine", *words[2:]).stdout)["answer"]
