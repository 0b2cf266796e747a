"""A folder in PEFT's format, ours or somebody else's, is asked and measured as a run is; peft itself is the witness."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import rankwise as library
from conftest import tiny_model
from kit.command import done, printed, rankwise
from rankwise.config.validation import GenerationConfig

PROMPT = "What is land 1?"
THEIRS = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny_folder):
    """A run, and an adapter that peft made of the same base and saved as trl does, with a tokenizer and a template."""
    folder = tmp_path_factory.mktemp("folders")
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=3, lora_alpha=12, target_modules=["q_proj", "down_proj"]))
    torch.manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(folder / "theirs")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.chat_template = THEIRS
    tokenizer.save_pretrained(folder / "theirs")
    with contextlib.chdir(folder):
        rows = [{"prompt": f"What is land {n}?", "completion": f"It is town {n}."} for n in range(12)]
        for name, some in (("rows", rows[:6]), ("others", rows[6:])):
            Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
        words = ("--steps", 20, "--batch-size", 2, "--rank", 2, "--learning-rate", 0.02)
        done("train", "--model", tiny_folder, "--data", "rows.jsonl", "--run", "mine", *words)
        shutil.copytree("runs/mine/adapter", "ours")
    return folder


@pytest.fixture
def home(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def with_peft(base, folder, template=None):
    """Its greedy answer, and the loss it has on a conversation's answer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder).eval()
    chat = [{"role": "user", "content": PROMPT}]
    asked = tokenizer.apply_chat_template(chat, chat_template=template, add_generation_prompt=True, return_tensors="pt")
    ids = asked["input_ids"]
    with torch.no_grad():
        written = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    return tokenizer.decode(written, skip_special_tokens=True).strip(), model


def test_an_adapter_of_peft_answers_as_with_peft_by_the_template_that_lies_beside_it(home, tiny_folder):
    wanted, _ = with_peft(tiny_folder, home / "theirs")
    words = ("generate", "theirs", "--prompt", PROMPT, "--max-new-tokens", 8)
    answer = printed(*words)["answer"]
    assert answer.strip() == wanted != ""
    assert library.generate("theirs", PROMPT, GenerationConfig(max_new_tokens=8)).adapted.text == answer
    assert printed(*words, "--base")["base_answer"] != answer
    (home / "theirs" / "chat_template.jinja").unlink()
    by_base, _ = with_peft(tiny_folder, home / "theirs", AutoTokenizer.from_pretrained(tiny_folder).chat_template)
    assert printed(*words)["answer"].strip() == by_base != wanted


def test_a_runs_own_adapter_folder_answers_as_the_run(home):
    words = ("--prompt", PROMPT, "--max-new-tokens", 8, "--both")
    of_run, of_folder = (printed("generate", name, *words) for name in ("mine", "ours"))
    for key in ("answer", "base_answer"):
        assert of_run[key] == of_folder[key]
    spoken = rankwise("chat", "ours", "--max-new-tokens", 8, "--json", typed=f"{PROMPT}\n/quit\n")
    assert json.loads(spoken.stdout)["turns"][0]["adapted"] == of_run["answer"]


def test_an_export_copies_no_file_that_a_link_in_the_folder_leads_out_to(home):
    (home / "secret").write_text("not a tokenizer")
    (home / "theirs" / "vocab.json").symlink_to(home / "secret")
    assert rankwise("export", "theirs", "--to", "out").exit_code == 0
    assert (home / "out" / "tokenizer.json").is_file() and not (home / "out" / "vocab.json").exists()


def test_an_adapter_folder_is_evaluated_as_its_run_is(home):
    words = ("--data", "others.jsonl", "--no-forgetting")
    of_run, of_folder = (printed("evaluate", name, *words) for name in ("mine", "ours"))
    assert of_run["metrics"] == of_folder["metrics"] and of_run["n"] == of_folder["n"] == 6
    assert sorted(path.name for path in (home / "ours").iterdir()) == sorted(
        path.name for path in (home / "runs" / "mine" / "adapter").iterdir()
    ), "nothing is written into somebody's adapter"


def test_the_strength_of_an_adapter_folder_is_that_of_its_run(home):
    words = ("--data", "others.jsonl", "--blocks", 2)
    of_run, of_folder = (printed("strength", name, *words) for name in ("mine", "ours"))
    assert of_run["points"] == of_folder["points"]
    assert not (home / "ours" / "strength.json").exists()
    shown = rankwise("strength", "theirs", *words)
    assert shown.exit_code == 0 and "written to" not in shown.stdout and "recommended" in shown.stdout, shown.output
    without = rankwise("strength", "ours")
    assert without.exit_code == 2 and "--data" in without.stderr


@pytest.mark.parametrize("format", ["peft", "portable", "merged"])
def test_an_adapter_of_peft_is_exported_and_stays_what_it_was(home, tiny_folder, format):
    done("export", "theirs", "--to", "out", "--format", format)
    ids = torch.arange(48).reshape(2, 24)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    if format == "merged":
        found = AutoModelForCausalLM.from_pretrained(home / "out").eval()
    else:
        found = PeftModel.from_pretrained(base, home / "out").eval()
    _, wanted = with_peft(tiny_folder, home / "theirs")
    with torch.no_grad():
        ours, theirs = (model(input_ids=ids).logits for model in (found, wanted))
        plain = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)(input_ids=ids).logits
    scale = theirs.abs().max()
    assert (ours - theirs).abs().max() < 1e-5 * scale < 1e-2 * (plain - theirs).abs().max()
    if format == "merged":
        assert AutoTokenizer.from_pretrained(home / "out").chat_template.strip() == THEIRS.strip()


def test_an_adapter_says_whether_its_base_could_be_checked(home):
    words = ("--prompt", PROMPT, "--max-new-tokens", 1)
    assert "does not record" in rankwise("generate", "theirs", *words).stderr
    assert "does not record" not in rankwise("generate", "ours", *words).stderr


def test_a_base_that_is_another_is_refused_where_the_folder_records_which_it_was(home, hub_tokenizer):
    tiny_model("llama", vocab=len(hub_tokenizer), seed=1).save_pretrained(home / "another")
    hub_tokenizer.save_pretrained(home / "another")
    words = ("generate", "ours", "--prompt", PROMPT, "--max-new-tokens", 4, "--base-model", "another")
    refused = rankwise(*words)
    assert refused.exit_code == 2 and "different weights" in refused.stderr and "--force-base" in refused.stderr
    assert rankwise(*words, "--force-base").exit_code == 0


@pytest.mark.parametrize("named", ["/nowhere/base", "./nowhere", "gone/model.gguf", None])
def test_a_base_that_is_not_here_is_named_with_the_way_out(home, tiny_folder, named):
    file = home / "theirs" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": named}))
    words = ("generate", "theirs", "--prompt", PROMPT, "--max-new-tokens", 4)
    refused = rankwise(*words)
    assert refused.exit_code == 2 and "--base-model" in refused.stderr and "adapter_config.json" in refused.stderr
    assert (named or "") in refused.stderr and "hub" not in refused.stderr
    assert rankwise(*words, "--base-model", tiny_folder).exit_code == 0


def test_the_base_of_a_run_can_lie_elsewhere(home, tiny_folder):
    file = home / "runs" / "mine" / "config.json"
    spec = json.loads(file.read_text())
    file.write_text(json.dumps(spec | {"model": spec["model"] | {"name": "/nowhere/base"}}))
    words = ("generate", "mine", "--prompt", PROMPT, "--max-new-tokens", 4, "--force-result")  # settings have a hash
    refused = rankwise(*words)
    assert refused.exit_code == 2 and "--base-model" in refused.stderr
    assert rankwise(*words, "--base-model", tiny_folder).exit_code == 0


def test_an_adapter_of_a_starter_meets_the_copy_that_is_here(home, starter_folder):
    file = home / "theirs" / "adapter_config.json"
    named = {"base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    file.write_text(json.dumps(json.loads(file.read_text()) | named))
    refused = rankwise("generate", "theirs", "--prompt", PROMPT)
    assert refused.exit_code == 2 and "q_proj" in refused.stderr and "factors" in refused.stderr, "found, and another"


def test_a_tokenizer_with_other_numbers_for_the_same_words_is_said(home):
    file = home / "theirs" / "tokenizer.json"
    told = json.loads(file.read_text())
    vocab = told["model"]["vocab"]
    one, other = list(vocab)[10:12]
    vocab[one], vocab[other] = vocab[other], vocab[one]
    file.write_text(json.dumps(told))
    asked = rankwise("generate", "theirs", "--prompt", PROMPT, "--max-new-tokens", 1)
    assert asked.exit_code == 0 and "tokenizer" in asked.stderr and "differs from its base model" in asked.stderr
