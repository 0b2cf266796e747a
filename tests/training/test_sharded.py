"""A base that is split over processes (FSDP2) computes what a whole one does, and trains to the same adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from conftest import tiny_model
from kit.shards import IDS, learn_sharded, whole_model, write_logits
from kit.worlds import CASES, Case, distance, learn, learned_by, together
from rankwise.base.loading import load_unchecked
from rankwise.commands.train import connect_shards
from rankwise.config.experiment import Experiment
from rankwise.config.incompatible import problems
from rankwise.config.models import ModelConfig
from rankwise.errors import ConfigError
from rankwise.training.world import ONE_PROCESS, World

pytestmark = pytest.mark.slow
MODELS = ("llama", "gpt2", "neox", "tied")
TRAINED = ("lora", "lora packed", "adalora", "accumulated", "fewer rows than processes", "full", "best")


def case_of(name: str, folder: Path) -> Case:
    return replace(CASES[name], base=folder / "llama")


def write_models(folder: Path) -> None:
    for name in MODELS[:3]:
        tiny_model(name).save_pretrained(folder / name)
    torch.manual_seed(1)
    odd = LlamaConfig(
        vocab_size=97, hidden_size=40, intermediate_size=51, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(odd).save_pretrained(folder / "tied")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sharded")
    write_models(made)
    return made


def test_logits_are_those_of_the_whole_model_bit_for_bit(folder: Path) -> None:
    mistakes = [("llama", "rows of the first"), ("llama", "no buffers")]
    for ended in together(write_logits, 2, folder, [*((name, None) for name in MODELS), *mistakes], timeout=300):
        assert ended.code == 0, ended.errors[-3000:]
    for name in MODELS:
        model = whole_model(folder / name)
        with torch.no_grad():
            logits = model(input_ids=IDS).logits
        written = [load_file(folder / f"{name}-None-{rank}.safetensors") for rank in range(2)]
        for one in written:
            assert torch.equal(one["first"], logits) and torch.equal(one["second"], logits), name
        for key, parameter in model.named_parameters():
            first, second = (tuple(one[key].tolist()) for one in written)
            assert first[0] + second[0] == parameter.shape[0] and first[1:] == tuple(parameter.shape[1:]), key
        for planted in (mistake for model_name, mistake in mistakes if model_name == name):
            wrong = load_file(folder / f"{name}-{planted}-0.safetensors")["first"]
            assert not torch.allclose(wrong, logits, atol=1e-6), planted


def test_adapters_over_a_split_base_are_those_of_one_process(folder: Path, tmp_path: Path) -> None:
    mistakes = [("lora", "summed twice"), ("lora", "not summed"), ("fewer rows than processes", "idle rows learn")]
    for ended in together(learn_sharded, 2, folder, [*((name, None) for name in TRAINED), *mistakes], timeout=300):
        assert ended.code == 0, ended.errors[-3000:]
    for name in TRAINED:
        alone = learn(case_of(name, folder), ONE_PROCESS, tmp_path)
        for rank in range(2):
            assert distance(alone, learned_by(folder, f"{name} None", rank)) <= 1e-6, name
        for planted in (mistake for case, mistake in mistakes if case == name):
            if (folder / f"{name} {planted}-0.json").exists():
                assert distance(alone, learned_by(folder, f"{name} {planted}", 0)) > 1e-3, planted


def test_what_does_not_go_with_a_split_base_is_refused_by_name() -> None:
    experiment = Experiment.model_validate(split_experiment() | {"training": {"auto_batch": True, "replay": {}}})
    with pytest.raises(ConfigError) as refused:
        connect(experiment, World(size=2))
    names = ("training.auto_batch (--auto-batch)", "training.replay (--replay)")
    assert all(f"cannot be used with {name} yet" in str(refused.value) for name in names)


def test_one_process_has_nothing_to_split(folder: Path) -> None:
    with pytest.raises(ConfigError, match="there is only one here"):
        connect(Experiment.model_validate(split_experiment()), ONE_PROCESS)
    with pytest.raises(ConfigError, match="there is only one here"):
        load_unchecked(ModelConfig(name=str(folder / "llama"), sharded=True))


def connect(experiment: Experiment, world: World) -> None:
    connect_shards(experiment.base, problems(experiment, "model.sharded"), world)


def split_experiment() -> dict[str, Any]:
    return {"model": {"name": "base", "sharded": True}, "data": {"path": "rows.jsonl"}, "run": "r"}
