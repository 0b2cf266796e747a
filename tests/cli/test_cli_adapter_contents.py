"""An adapter's folder is whole to others: peft and transformers load it by its name alone, and a person can read it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from markdown_it import MarkdownIt
from peft import AutoPeftModelForCausalLM, PeftModel
from ruamel.yaml import YAML
from transformers import AutoModelForCausalLM, AutoTokenizer

from kit.command import done, rankwise
from rankwise.base.sources import find
from rankwise.config.models import ModelConfig
from rankwise.methods.model_card import CardFacts, card, escaped
from rankwise.runs.directory import RunDirectory
from rankwise.runs.manifest import BaseModelFacts
from rankwise.runs.records import silent
from rankwise.runs.snapshot import RunSnapshot

HOSTILE = "x](javascript:1) <script>alert(1)</script> | `# a: {b} *c* _d_ www.evil.example &lt; \u202e\n---\n- e: f"


def train(model, run, *words):
    given = ("--data", "secret/rows.jsonl", "--steps", 6, "--batch-size", 2, "--held-out", 2, "--rank", 3)
    result = done("train", "--model", model, "--run", run, *given, "--learning-rate", 0.01, *words)
    return result


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_folder):
    """A run of a base that was named by a relative path, and what was exported of it."""
    folder = tmp_path_factory.mktemp("contents")
    with contextlib.chdir(folder):
        shutil.copytree(tiny_folder, folder / "models" / "tiny")
        (folder / "models" / "tiny" / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
        (folder / "models" / "tiny" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
        rows = [{"prompt": f"What is land {n}?", "completion": f"It is town {n}."} for n in range(8)]
        (folder / "secret").mkdir()
        (folder / "secret" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "secret" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
        train("models/tiny", "mine")
        for format in ("peft", "portable"):
            done("export", "mine", "--to", f"out-{format}", "--format", format, "--strength", 0.5)
        assert rankwise("export", "out-peft", "--to", "again").exit_code == 0
    return folder


FOLDERS = ("runs/mine/adapter", "out-peft", "out-portable", "again")


@pytest.mark.parametrize("name", FOLDERS)
def test_transformers_and_peft_load_a_folder_by_its_name_alone(home, tiny_folder, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # a relative name of the base would lead nowhere
    folder = home / name
    tokenizer, base_tokenizer = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(tiny_folder)
    assert tokenizer.get_vocab() == base_tokenizer.get_vocab()
    chat = [{"role": "user", "content": "What is land 1?"}]
    ids, wanted = (
        one.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")["input_ids"]
        for one in (tokenizer, base_tokenizer)
    )
    assert torch.equal(ids, wanted)
    loaded = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    with torch.no_grad():
        plain = base(input_ids=ids).logits
        by_hand = PeftModel.from_pretrained(base, folder).eval()
        assert torch.equal(loaded(input_ids=ids).logits, by_hand(input_ids=ids).logits)
        assert (loaded(input_ids=ids).logits - plain).abs().max() > 1e-3 * plain.abs().max()
    assert json.loads((folder / "special_tokens_map.json").read_text()) == {"eos_token": "<|im_end|>"}


def parted(folder):
    """Front matter as values, and the text below it."""
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return YAML(typ="safe", pure=True).load(front), text


@pytest.mark.parametrize("name", (FOLDERS[0], FOLDERS[3]))
def test_a_card_says_how_an_adapter_came_to_be(home, name):
    front, text = parted(home / name)
    assert front == {
        "library_name": "peft", "pipeline_tag": "text-generation", "tags": ["lora", "transformers", "rankwise"],
        "data_license": "CC-BY-4.0", "base_model_license": "Apache-2.0",
    }  # fmt: skip
    results = json.loads((home / "runs" / "mine" / "manifest.json").read_text())["results"]
    before, after = results["validation_loss_before"], results["validation_loss_after"]
    for told in ("| rank | 3 |", "| steps | 6 at learning rate 0.01 |", "6 for training, 2 for validation, 0 left out",
                 f"{before:.4f} before training and {after:.4f} after", "rows.jsonl", "CC-BY-4.0", "Apache-2.0",
                 "## Limits",
                 "AutoPeftModelForCausalLM", "rankwise chat", "--base-model"):  # fmt: skip
        assert told in text, told
    assert ("strength 0.5" in text) == (name != "runs/mine/adapter")
    whole = (home / name / "README.md").read_text()
    assert "secret" not in whole and str(home) not in whole and str(Path.home()) not in whole


def test_the_same_run_has_the_same_card(home, tmp_path, monkeypatch):
    monkeypatch.chdir(home)
    train("models/tiny", "twice")
    ours, theirs = ((home / "runs" / run / "adapter" / "README.md").read_text() for run in ("mine", "twice"))
    assert ours == theirs.replace("twice", "mine")


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_everything_in_a_result_has_the_mode_of_the_umask(home, monkeypatch, mask):
    monkeypatch.chdir(home)
    before = os.umask(mask)
    try:
        for format in ("peft", "portable", "merged"):
            assert rankwise("export", "mine", "--to", f"mode-{mask}-{format}", "--format", format).exit_code == 0
    finally:
        os.umask(before)
    files = [path for path in home.glob(f"mode-{mask}-*/**/*") if path.is_file()]
    assert len(files) >= 18 and {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~mask}


@pytest.mark.parametrize("given", ["./models/tiny", "{home}/models/tiny"])
def test_the_config_names_a_folder_in_full_and_a_run_finds_its_base_as_before(home, monkeypatch, given):
    monkeypatch.chdir(home)
    run = f"named-{len(given)}"
    train(given.format(home=home), run)
    config = json.loads((home / "runs" / run / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(home / "models" / "tiny")
    assert json.loads((home / "runs" / run / "config.json").read_text())["model"]["name"] == given.format(home=home)
    moved = shutil.copytree(home / "models", home / f"moved-{run}" / "models")
    shutil.copytree(home / "runs" / run, moved.parent / "runs" / run)
    monkeypatch.chdir(moved.parent / "runs")
    done("generate", f"../runs/{run}", "--prompt", "hi", "--max-new-tokens", 1)


def test_a_starter_keeps_the_hub_s_name(starter_folder):
    source = find(ModelConfig(name="smollm2-135m"), silent)
    assert source.name_for_peft == "HuggingFaceTB/SmolLM2-135M-Instruct" and source.folder == starter_folder


def tokens_of(text):
    """All that Markdown makes of it, as types and as what is shown."""
    found = []
    waiting = MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(text)
    while waiting:
        token = waiting.pop(0)
        found.append(token)
        waiting = [*(token.children or []), *waiting]
    return found


def test_what_somebody_wrote_is_shown_and_not_obeyed():
    cell = f"| a | {escaped(HOSTILE)} |"
    tokens = tokens_of(f"# {escaped(HOSTILE)}\n\n| | |\n|---|---|\n{cell}\n")
    kinds = {token.type for token in tokens}
    obeyed = {"html_block", "html_inline", "link_open", "image", "code_inline", "em_open", "strong_open", "hr"}
    assert not kinds & obeyed
    assert sum(token.type == "td_open" for token in tokens) == 2
    shown = "".join(token.content for token in tokens if token.type in ("text", "text_special"))
    wanted = " ".join(HOSTILE.replace("\u202e", " ").split())
    assert shown.count(wanted) == 2
    assert not re.search(r"www\.|https?:", escaped("see WWW.evil.example, www.evil.example and https://evil"), re.I)


def test_a_hostile_name_of_a_base_reads_back_as_itself(home):
    run = RunDirectory(home / "runs" / "mine")
    base = BaseModelFacts(name=HOSTILE, source=HOSTILE, fingerprint="f", dtype="float32", device="cpu")
    data_report, results = RunSnapshot.of(run).recorded_data, run.manifest().results
    data_report = data_report.model_copy(update={"licence": HOSTILE})
    assert results is not None, "the run is finished"
    facts = CardFacts(
        run="mine", adapter=RunSnapshot.of(run).experiment.adapter, anchor=None, base=base, base_licence=HOSTILE,
        data_report=data_report, results=results, learning_rate=0.01, ranks=[3, 3],
    )  # fmt: skip
    front, text = card(facts).removeprefix("---\n").split("\n---\n", 1)
    read = YAML(typ="safe", pure=True).load(front)
    line = " ".join(HOSTILE.replace("\u202e", " ").split())
    assert [read[key] for key in ("base_model", "data_license", "base_model_license")] == [line] * 3
    assert set(read) == {"base_model", "library_name", "pipeline_tag", "tags", "data_license", "base_model_license"}
    kinds = {token.type for token in tokens_of(text)}
    assert not kinds & {"html_block", "html_inline", "link_open", "image"}
    local = card(replace(facts, base=base.model_copy(update={"source": "local folder", "name": "/home/ann/secret/m"})))
    assert "/home" not in local and "secret" not in local and "base_model:" not in local
