"""`rankwise plan`: GPT-3's parameters, the keys that programs read, no torch, clear words where it cannot."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rankwise as package
from kit.command import printed, rankwise
from rankwise.config.adapters import AdaLoraConfig, FullConfig, LoraConfig

KEYS = {
    "total_parameters", "trainable_parameters", "adapter_bytes", "memory_bytes", "flops_per_token", "seconds", "fits",
}  # fmt: skip
PARTS = {
    "process", "weights", "unpacking", "adapter", "gradients", "optimizer", "averages", "activations", "logits",
    "compiler", "overhead", "peak",
}  # fmt: skip


def planned(*words):
    return printed("plan", *words)


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    row = {"prompt": "Name a town by the sea, and say why people go there.", "completion": "Brighton, for its pier."}
    file.write_text((json.dumps(row) + "\n") * 120)
    return file


def test_the_line_of_a_training_is_planned_in_the_same_words(rows):
    words = ("--model", "smollm2-135m", "--data", rows, "--epochs", 1, "--set", "validation.prompts=[]")
    others = ("--run", "towns", "--validate-every", 1, "--keep", "best", "--patience", 2, "--seed", 3, "--auto-batch")
    whole, held_out = (
        planned(*words, "--held-out", 0),
        planned(*words, "--held-out", 40, "--held-out-order", "last", *others),
    )
    assert (whole["steps"], held_out["steps"]) == (8, 5)
    assert held_out["tokens"]["likely"] == pytest.approx(whole["tokens"]["likely"] * 80 / 120)
    seldom = planned(*words, "--held-out", 40, "--validate-every", 5)
    assert held_out["seconds_per_step"] * 5 < seldom["seconds"] < held_out["seconds"]


def test_every_setting_of_a_training_is_one_of_a_plan():
    told = {name: rankwise(name, "--help").output for name in ("train", "plan")}
    flags = {name: set(re.findall(r"--[a-z][a-z-]*", text)) for name, text in told.items()}
    not_planned = {"--restart", "--resume", "--force-memory", "--force-base", "--shard", "--log-to"}
    assert flags["train"] - flags["plan"] <= not_planned


@pytest.mark.parametrize(("rank", "trainable"), [(4, 18_874_368), (8, 37_748_736)])
def test_gpt_3_as_in_the_paper(rank, trainable):
    words = ("--model", "gpt3-175b", "--method", "lora", "--rank", rank, "--targets", "q_proj,v_proj")
    told = planned(*words)
    assert told["trainable_parameters"] == trainable
    assert 174e9 < told["total_parameters"] < 176e9
    assert told["trainable_by_layer"] == {
        leaf: {"layers": 96, "parameters": trainable // 2} for leaf in ("q_proj", "v_proj")
    }
    text = rankwise("plan", *words).stdout
    assert f"{trainable:,} of 174,604,283,904" in text
    if rank == 4:
        assert "9,251" in text and "37.75 MB" in text and not told["fits"]


def test_what_programs_read():
    told = planned("--model", "smollm2-135m", "--device", "rtx-4090", "--steps", 100, "--price", 0.5)
    assert KEYS <= told.keys() and set(told["memory_bytes"]) == PARTS
    parts = {name: size for name, size in told["memory_bytes"].items() if name != "peak"}
    assert sum(parts.values()) == pytest.approx(told["memory_bytes"]["peak"], abs=len(parts))
    assert told["fits"] is True and told["seconds_low"] <= told["seconds"] <= told["seconds_high"]
    assert told["money"]["likely"] == pytest.approx(told["seconds"] * 0.5 / 3600)
    assert set(told["memory_bytes_of_methods"]) == {"lora", "adalora", "full"}
    assert {"rtx-3060-12gb", "h200", "m3-max-64gb"} <= told["devices"].keys()
    assert set(told["weights_bytes"]) >= {"float32", "bfloat16", "int8", "nf4"}


PROCESSES = {"count", "rows_per_step", "idle", "largest_share", "gradient_bytes", "sharded"}


def test_several_processes_are_planned(rows):
    words = ("--model", "smollm2-135m", "--device", "h100", "--steps", 100, "--data", rows)
    alone, told = planned(*words), planned(*words, "--processes", 16)
    assert alone["processes"] is None and set(told["processes"]) == PROCESSES
    several = told["processes"]
    assert (several["count"], several["rows_per_step"], several["idle"]) == (16, 16, 0)
    assert several["gradient_bytes"] == 4 * told["trainable_parameters"]
    assert several["sharded"]["peak"] < told["memory_bytes"]["peak"] < alone["memory_bytes"]["peak"]
    assert told["tokens_per_step"] == alone["tokens_per_step"] and told["steps"] == 100
    assert told["seconds_per_step"] <= alone["seconds_per_step"]
    text = rankwise("plan", *words, "--processes", 20).stdout
    assert "for each of 20 processes" in text and "4 of them have no rows" in text
    assert "of gradients in each step, for which no time is counted" in text
    assert "sharded       over 20 processes:" in text


def test_processes_that_share_this_machine_have_a_part_of_its_memory():
    words = ("--model", "smollm2-135m", "--device", "cpu")
    text = rankwise("plan", *words, "--processes", 2).stdout
    assert "2 on one machine, which share its cores and memory" in text


def test_a_model_too_large_for_its_card_is_told_what_would_fit():
    told = planned("--model", "llama-2-7b", "--device", "rtx-3060-12gb", "--method", "full")
    assert not told["fits"] and told["blocks_to_recompute"] is None
    by_itself = planned("--model", "llama-2-7b", "--device", "rtx-4090")
    assert by_itself["fits"] and 0 < by_itself["blocks_to_recompute"] <= 32


@pytest.mark.parametrize(
    ("model", "device", "settings"),
    [
        ("llama-2-7b", "rtx-4090", ["training.activation_checkpointing=0"]),
        ("gemma-2-2b", "rtx-3060-12gb", ["training.max_batch_tokens=16384"]),
        ("pythia-2.8b", "t4", ["training.activation_checkpointing=4", "model.dtype=float32"]),
        ("smollm2-360m", "m1-8gb", ["adapter.method=full", "training.activation_checkpointing=0"]),
    ],
)
def test_every_remedy_does_what_it_says(model, device, settings):
    asked = ["--model", model, "--device", device]
    words = [word for setting in settings for word in ("--set", setting)]
    told = planned(*asked, *words)
    assert not told["fits"] and told["remedies"]
    for remedy in told["remedies"]:
        changes = [word for change in remedy["changes"] for word in ("--set", change)]
        changed = planned(*asked, *words, *changes)
        assert changed["fits"] and changed["memory_bytes"]["peak"] == remedy["peak"], remedy
        assert "bfloat16" not in str(remedy["changes"]) or device != "t4"


def test_rows_make_steps_and_tokens(rows):
    told = planned("--model", "smollm2-135m", "--data", rows, "--device", "rtx-4090", "--epochs", 3,
                   "--held-out", 0)  # fmt: skip
    assert told["steps"] == 23 and told["tokens"]["low"] <= told["tokens"]["likely"] <= told["tokens"]["high"]
    assert told["seconds"] > 0
    text = rankwise("plan", "--model", "smollm2-135m", "--data", rows, "--device", "rtx-4090").stdout
    assert "108 sequences" in text


def test_the_same_file_of_settings_is_trained_and_planned(tmp_path, rows):
    file = tmp_path / "train.yaml"
    file.write_text(f"model: smollm2-135m\ndata: {rows}\nrun: mine\nadapter:\n  rank: 4\nvalidation:\n  keep: last\n")
    assert planned(file, "--device", "h100")["trainable_parameters"] == 4_884_480 // 4
    wrong = rankwise("plan", file, "--set", "training.step=3")
    assert wrong.exit_code == 2 and "training.step" in wrong.output and "Traceback" not in wrong.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "no-such-model"), "no-such-model"),
        (("--model", "smollm2-135m", "--device", "rtx-9999"), "rtx-9999"),
        (("--model", "smollm2-135m", "--device", "h100", "--probe"), "measures this machine"),
        (("--model", "smollm2-135m", "--targets", "q_prj"), "q_proj"),
        (("--model", "smollm2-135m", "--price", "-3"), "price"),
        (
            ("--model", "smollm2-135m", "--processes", "2", "--set", "model.device=mps"),
            "several processes cannot train with model.device=mps",
        ),
        (("--model", "smollm2-135m", "--method", "prefix"), "lora, adalora, vera, head or full"),
        (("--model", "smollm2-135m", "--data", "nowhere.jsonl"), "nowhere.jsonl"),
        ((), "model"),
    ],
)
def test_mistakes_are_named(words, said):
    result = rankwise("plan", *words)
    assert result.exit_code == 2 and said in result.output and "Traceback" not in result.output


def test_models_are_listed():
    models = {row["name"] for row in printed("plan", "--models")["models"]}
    assert {"gpt3-175b", "llama-2-7b", "gpt-j-6b", "smollm2-135m", "bert-base-uncased"} <= models


def test_torch_is_not_imported(rows):
    program = (
        "import sys\nfrom rankwise.cli.main import app\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print('LOADED', *{name.partition('.')[0] for name in sys.modules})"
    )
    words = ["plan", "--model", "smollm2-135m", "--data", str(rows)]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(Path(package.__file__).parents[1])},
    )  # fmt: skip
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "4,884,480" in done.stdout and "rankwise" in loaded
    assert not {"torch", "transformers", "tensorflow"} & loaded


@pytest.mark.parametrize("spec", [LoraConfig(rank=4), AdaLoraConfig(budget="4"), FullConfig()])
def test_a_plan_counts_what_training_makes(spec, tiny_folder):
    """Of a model in a folder: total and trainable, to the last one."""
    from rankwise.base.loading import load
    from rankwise.methods.adalora import TrainableAdaLora
    from rankwise.methods.inject import inject

    words = ("--set", f"adapter.method={spec.method}", *(
        ("--rank", 4) if spec.method == "lora" else ("--budget", "4") if spec.method == "adalora" else ()
    ))  # fmt: skip
    told = planned("--model", tiny_folder, *words)
    module = load(str(tiny_folder)).module
    total = sum(parameter.numel() for parameter in module.parameters())
    assert told["total_parameters"] == total
    if isinstance(spec, FullConfig):
        assert told["trainable_parameters"] == total
        return
    adapters = inject(module, spec)
    if isinstance(spec, AdaLoraConfig):
        TrainableAdaLora(adapters, spec, 10)
    assert told["trainable_parameters"] == sum(parameter.numel() for parameter in adapters.parameters())


def test_a_folder_comes_before_the_list_as_in_training(tmp_path, tiny_folder, monkeypatch):
    from rankwise.base.starters import STARTERS
    from rankwise.planning import reading

    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").symlink_to(tiny_folder)
    assert planned("--model", "gpt2")["total_parameters"] == planned("--model", tiny_folder)["total_parameters"]
    assert set(STARTERS) == reading.STARTERS


def test_rows_that_train_nothing_are_refused(tmp_path):
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"prompt": "a " * 5000, "completion": "b " * 5000}) + "\n")
    result = rankwise("plan", "--model", "smollm2-135m", "--data", file)
    assert result.exit_code == 2 and "no row is left for training" in result.output
    file.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"\n')
    result = rankwise("plan", "--model", "smollm2-135m", "--data", file)
    assert result.exit_code == 2 and "cannot be read" in result.output


@pytest.mark.parametrize(
    ("model", "parameters", "method"),
    [("bert-base-uncased", 109_482_240, "adalora"), ("vit-base-patch16-224", 86_389_248, "full")],
)
def test_of_a_model_that_is_not_trained_here_the_parameters_are_told_alone(model, parameters, method):
    told = planned("--model", model, "--method", method)
    assert told["total_parameters"] == parameters and told["trained_by_rankwise"] is False
    assert told["memory_bytes"] is None and told["fits"] is None and told["seconds"] is None


def test_of_a_mixture_the_least_memory_is_told(tmp_path):
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "model_type": "mixtral"}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    words = ("--model", tmp_path, "--targets", "experts.gate_up_proj,experts.down_proj", "--rank", "2")
    told = planned(*words, "--set", "model.dtype=float32")
    trained = 2 * 4 * 2 * (32 + 88 + 44 + 32)
    assert told["trainable_parameters"] == trained and told["memory_bytes"] is None
    assert told["memory_bytes_at_least"] == 4 * told["total_parameters"] + 16 * trained
    assert "memory        at least" in rankwise("plan", *words).stdout
