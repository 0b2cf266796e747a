"""A merge that is killed at any moment leaves nothing that looks like a model."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from kit.adapted_models import save_adapter
from rankwise.config.adapters import LoraConfig

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_no_kill_leaves_a_folder_that_looks_loadable(tmp_path, monkeypatch):
    config = LlamaConfig(
        vocab_size=500, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "base", max_shard_size="100KB")
    save_adapter(tmp_path / "adapter", tmp_path / "base", "", LoraConfig(rank=4), model=model)
    monkeypatch.syspath_prepend(BENCH)
    bench = importlib.import_module("merge_kills")
    found = bench.results(tmp_path / "out", str(tmp_path / "base"), str(tmp_path / "adapter"), kills=6, seed=0)
    assert found["loadable_remains"] == [] and found["merged_afterwards"]
    assert found["kills"] == 6
