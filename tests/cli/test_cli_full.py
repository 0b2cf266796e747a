"""`--method full`: a run whose result is a whole model, which anybody loads, and whose base can still be asked."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import rankwise as package
from kit.command import done, printed, rankwise
from kit.processes import ended
from rankwise.base.precision import choose_precision
from rankwise.errors import ConfigError
from rankwise.runs.directory import RunDirectory
from rankwise.runs.records import StepRecord

IDS = torch.arange(48).reshape(2, 24) % 96
KEYS = {
    "run", "model", "steps", "loss", "validation_loss_before", "validation_loss_after", "validation_loss_tokens",
    "train_seconds", "tokens_per_second", "peak_rss_bytes", "trainable_parameters", "total_parameters",
    "adapter_bytes", "kept_step", "kept_why", "ended_early", "temperature", "forecast", "warnings",
    "validation_accuracy",
    "validation_accuracy_before", "validation_accuracy_after", "images_per_second", "budget", "learning_rate", "tuning",
    "replay", "accuracy_budget", "preference", "baselines", "earlier_rounds",
}  # fmt: skip
WORDS = (
    "train", "--model", "base", "--data", "rows.jsonl", "--steps", 30, "--batch-size", 4, "--held-out", 3,
    "--learning-rate", 0.01, "--method", "full",
)  # fmt: skip
QUESTION = ("--prompt", "What is the capital of land 3?", "--max-new-tokens", 12)


def refused(*words):
    result = rankwise(*words)
    assert result.exit_code == 2, result.output
    return result.stderr


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, hub_tokenizer):
    """A base with a tied head and bfloat16 weights in its files, as most have; "whole" trained on it, and "lora"."""
    folder = tmp_path_factory.mktemp("full")
    with contextlib.chdir(folder):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(hub_tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=2,
            pad_token_id=2, tie_word_embeddings=True,
        )  # fmt: skip
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained("base")
        hub_tokenizer.save_pretrained("base")
        rows = [{"prompt": f"What is the capital of land {n}?", "completion": f"It is town {n}."} for n in range(15)]
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        told = done(*WORDS, "--run", "whole", "--json")
        assert told.stdout.count("\n") == 1
        Path("told.json").write_text(told.stdout)
        Path("said.txt").write_text(told.stderr)
        done(*WORDS[:-2], "--run", "lora", "--rank", 4)
    return folder


@pytest.fixture
def home(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def theirs(folder):
    """As transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_what_json_says_agrees_with_what_lies_on_the_disk(home):
    told = json.loads((home / "told.json").read_text())
    assert set(told) == KEYS
    assert (told["run"], told["model"], told["steps"]) == ("runs/whole", "runs/whole/model", 30)
    size = sum(weight.numel() for weight in theirs("base").parameters())
    assert told["trainable_parameters"] == told["total_parameters"] == size
    assert told["adapter_bytes"] == (home / "runs" / "whole" / "model" / "model.safetensors").stat().st_size > 4 * size
    assert told["validation_loss_after"] < told["validation_loss_before"] - 0.5


def test_the_form_and_the_number_format_are_told_before(home):
    said = (home / "said.txt").read_text()
    assert "using the eager backend: the fused kernels need frozen weights" in said
    assert "float32 on cpu" in said and "trainable parameters in 20 weights" in said
    manifest = json.loads((home / "runs" / "whole" / "manifest.json").read_text())
    found = (manifest["backend"], manifest["base_model"]["dtype"], manifest["status"])
    assert found == ("eager", "float32", "finished")


def test_a_finished_run_is_these_files_and_no_leftovers(home):
    run = home / "runs" / "whole"
    assert {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} == {
        ".lock", "config.json", "data_report.json", "manifest.json", "metrics.jsonl", "model/config.json",
        "model/model.safetensors", "model/generation_config.json", "model/tokenizer.json",
        "model/tokenizer_config.json", "model/chat_template.jinja", "model/data_report.json", "model/training.json",
        "report.html", "report.json",
    }  # fmt: skip
    assert (run / "model" / "data_report.json").read_bytes() == (run / "data_report.json").read_bytes()


def test_transformers_loads_the_model_that_was_trained(home):
    asked = package.load_tuned("whole")
    found = AutoModelForCausalLM.from_pretrained("runs/whole/model").eval()
    assert found.dtype == torch.float32 and found.get_output_embeddings().weight is found.model.embed_tokens.weight
    assert torch.equal(logits(found), logits(asked.model.module))
    assert (logits(found) - logits(theirs("base"))).abs().max() > 0.1
    turns = [{"role": "user", "content": "What is it?"}]
    own, base = (AutoTokenizer.from_pretrained(folder) for folder in ("runs/whole/model", "base"))
    assert own.apply_chat_template(turns, add_generation_prompt=True, tokenize=False) == (
        base.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    )


def test_what_training_hands_over_is_what_was_written(home):
    asked_for = package.Experiment(
        model="base", data="rows.jsonl", run="handed", adapter=package.FullConfig(), training={"steps": 3}
    )
    trained = package.train(asked_for)
    assert torch.equal(logits(trained.model.module), logits(theirs("runs/handed/model")))
    with trained.trainable.base():
        assert torch.equal(logits(trained.model.module), logits(theirs("base")))
    assert torch.equal(logits(trained.model.module), logits(theirs("runs/handed/model")))
    # what it is called is what it has become: nobody takes it for the base
    assert trained.model.config.name == "runs/handed/model"
    assert trained.model.facts.fingerprint != trained.manifest.base_model.fingerprint
    with pytest.raises(ConfigError, match="the experiment names another one"):
        package.train(asked_for.model_copy(update={"run": "more"}), model=trained.model)
    on_it = asked_for.model_copy(update={"run": "more", "model": package.ModelConfig(name="runs/handed/model")})
    assert package.train(on_it, model=trained.model).manifest.status == "finished"


def test_a_model_that_is_given_stays_as_it_is(home):
    asked_for = package.Experiment(
        model={"name": "base", "dtype": "float32"}, data="rows.jsonl", run="given", adapter={"method": "full"},
        training={"steps": 3},
    )  # fmt: skip
    model = package.load(asked_for.model)
    trained = package.train(asked_for, model=model)
    assert torch.equal(logits(model.module), logits(theirs("base")))
    assert not torch.equal(logits(trained.model.module), logits(model.module))


def test_base_and_both_are_what_each_side_says_alone(home):
    both = printed("generate", "whole", *QUESTION, "--both")
    assert both["answer"] != both["base_answer"]
    assert printed("generate", "whole", *QUESTION)["answer"] == both["answer"]
    of_base = printed("generate", "whole", *QUESTION, "--base")["base_answer"]
    assert of_base == both["base_answer"]
    talk = rankwise("chat", "whole", "--both", "--json", "--max-new-tokens", "12", typed=QUESTION[1])
    turn = json.loads(talk.stdout)["turns"][0]
    assert (turn["user"], turn["adapted"], turn["base"]) == (QUESTION[1], both["answer"], both["base_answer"])
    assert {turn["adapted_stopped"], turn["base_stopped"]} <= {"end", "length"}


def test_a_base_that_is_gone_is_missed_only_by_who_asks_it(home):
    before = done("generate", "whole", *QUESTION).stdout
    shutil.rmtree("base")
    assert done("generate", "whole", *QUESTION).stdout == before
    done("inspect", "whole")
    done("export", "whole", "--to", "out", "--format", "merged")
    assert "base" in refused("generate", "whole", *QUESTION, "--base")


def test_a_base_that_is_another_is_refused_and_named(home):
    file = home / "base" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    done("generate", "whole", *QUESTION)
    assert "has different weights" in (message := refused("generate", "whole", *QUESTION, "--both"))
    assert "--force-base to use it anyway" in message
    done("generate", "whole", *QUESTION, "--both", "--force-base")


def test_inspect_says_that_there_are_no_ranks(home):
    told = printed("inspect", "whole")
    size = sum(weight.numel() for weight in theirs("base").parameters())
    assert (told["ranks"], told["history"], told["parameters"]) == ({}, [], size)
    assert told["bytes"] == (home / "runs" / "whole" / "model" / "model.safetensors").stat().st_size
    shown = done("inspect", "whole").stdout
    assert "full fine-tuning, no adapter" in shown and f"{size:,} parameters" in shown


def test_an_export_is_the_model_in_the_number_format_that_was_asked_for(home):
    told = printed("export", "whole", "--to", "same", "--format", "merged")
    assert (told["dtype"], told["logits_difference"], told["logits_change"]) == ("float32", 0.0, None)
    own, same = weights(home / "runs" / "whole" / "model"), weights(home / "same")
    assert own.keys() == same.keys() and all(torch.equal(own[name], same[name]) for name in own)
    done("export", "whole", "--to", "half", "--format", "merged", "--dtype", "bfloat16")
    half = weights(home / "half")
    assert all(torch.equal(own[name].to(torch.bfloat16), half[name]) for name in own)


def test_a_run_that_is_stopped_when_its_model_is_written_does_not_keep_it(home, monkeypatch):
    def stopped_at_last(run, manifest):
        if manifest.status == "finished":
            assert (home / "runs" / "late" / "model" / "model.safetensors").exists()
            raise KeyboardInterrupt
        write_manifest(run, manifest)

    write_manifest = RunDirectory.write_manifest
    monkeypatch.setattr(RunDirectory, "write_manifest", stopped_at_last)
    result = rankwise(*WORDS, "--run", "late")
    assert result.exit_code == 130 and "but no model" in result.stderr
    run = home / "runs" / "late"
    assert json.loads((run / "manifest.json").read_text())["status"] == "interrupted" and not (run / "model").exists()


class Stopped(Exception):
    pass


def test_a_run_that_failed_has_no_model_and_goes_on_to_the_same_bytes(home):
    # as after a power failure while the model was being written
    words = (*WORDS, "--set", "training.checkpoint_steps=10")
    done(*words, "--run", "straight")

    def stop(event):
        if isinstance(event, StepRecord) and event.step == 17:
            raise Stopped

    experiment = package.Experiment.model_validate(json.loads((home / "runs" / "straight" / "config.json").read_text()))
    with pytest.raises(Stopped):
        package.train(experiment.model_copy(update={"run": "stopped"}), callback=stop)
    run = home / "runs" / "stopped"
    assert not (run / "model").exists() and (run / "checkpoints" / "step-10").is_dir()
    assert "not finished" in refused("generate", "stopped", *QUESTION)
    (run / "model").mkdir()
    (run / "model" / "model.safetensors").write_bytes(b"half")
    assert "continuing after step 10" in done(*words, "--run", "stopped", "--resume").stderr
    for name in ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json"):
        straight = home / "runs" / "straight" / "model" / name
        assert (run / "model" / name).read_bytes() == straight.read_bytes()
    assert not (run / "checkpoints").exists()


def test_a_restart_leaves_nothing_of_another_method(home):
    def stop(event):
        raise Stopped

    experiment = package.Experiment(model="base", data="rows.jsonl", run="again", training={"steps": 2})
    with pytest.raises(Stopped):
        package.train(experiment, callback=lambda event: stop(event) if isinstance(event, StepRecord) else None)
    (home / "runs" / "again" / "adapter").mkdir()
    done(*WORDS, "--run", "again", "--restart")
    assert not (home / "runs" / "again" / "adapter").exists() and (home / "runs" / "again" / "model").is_dir()


def test_a_disk_that_refuses_the_model_leaves_no_half_of_it(home):
    command = ended(*WORDS, "--run", "refused", "--json", "--quiet", largest=100_000)
    out, err = command.output()
    assert command.returncode == 4 and "runs/refused/model" in json.loads(out)["error"], err
    run = home / "runs" / "refused"
    assert json.loads((run / "manifest.json").read_text())["status"] == "failed"
    assert not (run / "model").exists() and [str(path) for path in run.rglob("*.tmp*")] == []
    done(*WORDS, "--run", "refused", "--restart")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rank", 4), '"adapter.rank" is a setting of lora and vera, and the method is full'),
        (("--budget", 4), '"adapter.budget" is a setting of adalora, and the method is full'),
        (("--layers", "0"), '"adapter.layers" is a setting of lora, adalora and vera, and the method is full'),
        (("--targets", "q_proj"), '"adapter.targets" is a setting of lora, adalora and vera, and the method is full'),
        (("--dropout", 0.1), '"adapter.dropout" is a setting of lora, adalora and vera, and the method is full'),
        (("--set", "model.dtype=bfloat16"), "small updates would be rounded away in bfloat16"),
        (("--set", f"model.trust_code={'a' * 40}"), "could not be loaded without the Python code"),
        (("--method", "ful"), "the method is lora, adalora, vera, head or full"),
    ],
)
def test_what_does_not_go_with_it_is_refused_and_nothing_begun(home, words, said):
    before = sorted(home.rglob("*"))
    assert said in refused(*WORDS, "--run", "new", *words)
    assert sorted(home.rglob("*")) == before


def test_weights_that_learn_are_float32_whatever_the_machine_computes_in():
    for spec in (package.FullConfig(), {"method": "full"}):
        experiment = package.Experiment(model="m", data="d", run="r", adapter=spec)
        assert experiment.model.dtype == "auto", "what was asked is kept as it was asked"
        assert choose_precision(experiment.base).dtype == torch.float32
    assert package.Experiment(model="m", data="d", run="r").base.dtype == "auto"


def test_a_recipe_s_settings_of_an_adapter_are_left_out():
    given = {"model": "m", "data": {"path": "d", "recipe": "alpaca-lora"}, "run": "r"}
    for spec in (package.FullConfig(), {"method": "full"}):
        experiment = package.Experiment(**given, adapter=spec)
        assert experiment.adapter == package.FullConfig() and experiment.training.epochs == 3
    assert package.Experiment(**given).adapter.rank == 8
