"""A result that is not what training wrote is refused by every reader, file by file, and read only when forced.

Every test tampers with its own copy of a LoRA run and of a run whose result is a whole model.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from itertools import cycle, islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import rankwise as package
from kit.command import rankwise
from rankwise.config.validation import GenerationConfig
from rankwise.errors import ResultError
from rankwise.system.files import sha256_of

ROWS = [{"prompt": f"What is the capital of land {n}?", "completion": f"It is town {n}."} for n in range(8)]
WEIGHTS, CONFIG = "adapter/adapter_model.safetensors", "adapter/adapter_config.json"


@pytest.fixture
def home(library, tmp_path, monkeypatch):
    monkeypatch.chdir(library.lay_out(tmp_path / "home", "short", "short-full"))
    Path("text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    return tmp_path / "home"


def replace(path, content):
    path.write_bytes(content)


def retensored(run, change):
    tensors = load_file(run / WEIGHTS)
    (run / WEIGHTS).unlink()
    save_file(change(tensors), run / WEIGHTS, metadata={"format": "pt"})


def resettled(run, **settings):
    replace(run / CONFIG, json.dumps(json.loads((run / CONFIG).read_text()) | settings, indent=2).encode())


def flip_a_bit(run):
    content = bytearray((run / WEIGHTS).read_bytes())
    content[-5] ^= 1
    replace(run / WEIGHTS, bytes(content))


def remove_a_layer(run):
    retensored(run, lambda tensors: {key: value for key, value in tensors.items() if "layers.0" not in key})


def double_b(run):
    retensored(run, lambda tensors: {key: value * (1 + ("lora_B" in key)) for key, value in tensors.items()})


def repeat_a_header_key(run):
    """Its last entry once more at the end, with the place of the first: parsers take the later one."""
    content = (run / WEIGHTS).read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = content[8 : 8 + size].rstrip()
    entries = [(key, value) for key, value in json.loads(header).items() if key.endswith("q_proj.lora_A.weight")]
    longer = header[:-1] + f',"{entries[-1][0]}":{json.dumps(entries[0][1])}}}'.encode()
    longer += b" " * (-len(longer) % 8)
    replace(run / WEIGHTS, struct.pack("<Q", len(longer)) + longer + content[8 + size :])


TAMPERING = {
    "bit flipped": (flip_a_bit, "changed", WEIGHTS),
    "layer removed": (remove_a_layer, "changed", WEIGHTS),
    "use_rslora flipped": (lambda run: resettled(run, use_rslora=True), "changed", CONFIG),
    "B doubled": (double_b, "changed", WEIGHTS),
    "header key twice": (repeat_a_header_key, "changed", WEIGHTS),
    "alpha as text": (lambda run: resettled(run, lora_alpha="4"), "changed", CONFIG),
    "base renamed": (lambda run: resettled(run, base_model_name_or_path="else"), "changed", CONFIG),
    "weights gone": (lambda run: (run / WEIGHTS).unlink(), "missing", WEIGHTS),
    "settings gone": (lambda run: (run / CONFIG).unlink(), "missing", CONFIG),
    "all gone": (lambda run: shutil.rmtree(run / "adapter"), "missing", "adapter"),
    "token added": (lambda run: replace(run / "adapter/added_tokens.json", b'{"x": 1}'), "added", "added_tokens.json"),
    "template changed": (
        lambda run: replace(run / "adapter/chat_template.jinja", b"x"), "changed", "chat_template.jinja",
    ),
    "code added": (lambda run: replace(run / "adapter/tokenizer.py", b"x"), "added", "tokenizer.py"),
    "data report edited": (
        lambda run: replace(run / "data_report.json", (run / "data_report.json").read_bytes() + b" "),
        "changed", "data_report.json",
    ),
}  # fmt: skip
SHORT = GenerationConfig(max_new_tokens=2)
READERS = {
    "generate": ("generate", "short", "--prompt", "hi", "--max-new-tokens", 2),
    "chat": ("chat", "short", "--max-new-tokens", 2),
    "evaluate": ("evaluate", "short", "--no-forgetting"),
    "inspect": ("inspect", "short"),
    "strength": ("strength", "short", "--text", "text.txt", "--blocks", 2),
    "export": ("export", "short", "--to", "out"),
    "export portable": ("export", "short", "--to", "out", "--format", "portable"),
    "export merged": ("export", "short", "--to", "out", "--format", "merged"),
}
CALLS = {
    "generate": lambda force: package.generate("short", "hi", SHORT, force_result=force),
    "load_tuned": lambda force: package.load_tuned("runs/short", force_result=force),
    "evaluate": lambda force: package.evaluate("short", forgetting=False, force_result=force),
    "inspect": lambda force: package.inspect("short", force_result=force),
    "strength": lambda force: package.strength("short", text="text.txt", blocks=2, force_result=force),
    "export": lambda force: package.export("short", "out", force_result=force),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_every_reader_refuses_what_training_did_not_write(home, name):
    """Readers take turns: each is given several kinds of tampering, and each kind several readers."""
    tamper, how, file = TAMPERING[name]
    tamper(home / "runs" / "short")
    before = sorted(home.rglob("*"))
    at = list(TAMPERING).index(name)
    for words in islice(cycle(READERS.values()), at, at + 3):
        result = rankwise(*words, typed="hi\n")
        assert result.exit_code == 2 and result.stdout == "", (words, result.output)
        (line,) = result.stderr.splitlines()
        assert f"runs/short/{file}" in line or file in line, line
        assert {"changed": "was changed", "missing": "is missing", "added": "was added"}[how] in line
        assert "--force-result" in line
    for call in islice(cycle(CALLS.values()), at, at + 2):
        with pytest.raises(ResultError, match="--force-result"):
            call(False)
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize("words", READERS.values(), ids=list(READERS))
def test_forced_it_says_what_differs_and_goes_on(home, words):
    double_b(home / "runs" / "short")
    result = rankwise(*words, "--force-result", typed="hi\n")
    assert result.exit_code == 0, result.output
    assert WEIGHTS in result.stderr and "not what training wrote" in result.stderr


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_python_forces_it_by_an_argument(home, call):
    flip_a_bit(home / "runs" / "short")
    call(True)


@pytest.mark.parametrize("name", ["alpha as text", "weights gone", "settings gone", "all gone", "data report gone"])
def test_forced_reading_of_what_cannot_be_read_is_still_one_clear_error(home, name):
    remove_data_report = (lambda run: (run / "data_report.json").unlink(), "missing", "data_report.json")
    tamper, _, file = TAMPERING.get(name, remove_data_report)
    tamper(home / "runs" / "short")
    told = rankwise("generate", "short", "--prompt", "hi", "--max-new-tokens", 2, "--force-result")
    assert isinstance(told.exception, SystemExit | None) and "Traceback" not in told.stderr
    assert told.exit_code == 2 and file in told.stderr


def test_nothing_is_said_of_what_training_wrote(home):
    told = rankwise("generate", "short", "--prompt", "hi", "--max-new-tokens", 2)
    assert told.exit_code == 0 and told.stderr == ""
    assert package.inspect("short").summary()["integrity"]["status"] == "verified"


def test_all_problems_are_named_at_once_one_to_a_line(home):
    run = home / "runs" / "short"
    flip_a_bit(run)
    (run / CONFIG).unlink()
    replace(run / "adapter" / "vocab.txt", b"a")
    told = rankwise("generate", "short", "--prompt", "hi").stderr.splitlines()
    assert len(told) == 3
    for line, file in zip(told, (WEIGHTS, CONFIG, "adapter/vocab.txt"), strict=True):
        assert file in line and "--force-result" in line


def test_the_manifest_has_the_hash_of_every_file_of_the_result(home):
    for name, result in (("short", "adapter"), ("short-full", "model")):
        run = home / "runs" / name
        recorded = json.loads((run / "manifest.json").read_text())["result_sha256"]
        files = [path for path in (run / result).rglob("*") if path.is_file()]
        files += [run / "data_report.json", run / "metrics.jsonl"]
        assert recorded == {path.relative_to(run).as_posix(): sha256_of(path) for path in files}
        assert any(key.endswith(".safetensors") for key in recorded)


def test_what_no_program_loads_may_be_edited_and_is_mentioned(home):
    run = home / "runs" / "short"
    replace(run / "adapter" / "NOTES.md", b"mine")
    told = rankwise("generate", "short", "--prompt", "hi", "--max-new-tokens", 2)
    assert told.exit_code == 0 and "adapter/NOTES.md" in told.stderr


def test_a_run_of_an_earlier_version_is_read_and_said(home):
    file = home / "runs" / "short" / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["result_sha256"]
    replace(file, json.dumps(manifest).encode())
    double_b(home / "runs" / "short")
    told = rankwise("generate", "short", "--prompt", "hi", "--max-new-tokens", 2)
    assert told.exit_code == 0 and told.stderr.count("not checked") == 1
    assert json.loads(rankwise("inspect", "short", "--json").stdout)["integrity"]["status"] == "not recorded"
    assert "no hashes" in rankwise("inspect", "short").stdout


def test_inspect_shows_whether_the_result_verifies(home):
    run = home / "runs" / "short"
    files = len(json.loads((run / "manifest.json").read_text())["result_sha256"]) + 1  # and the settings
    assert f"{files} result files are unchanged since training" in rankwise("inspect", "short").stdout
    flip_a_bit(run)
    told = rankwise("inspect", "short", "--force-result")
    assert f"changed since training: {WEIGHTS}" in told.stdout
    facts = json.loads(rankwise("inspect", "short", "--force-result", "--json").stdout)["integrity"]
    assert facts == {
        "status": "changed", "files": files, "changed": [WEIGHTS], "missing": [], "added": [], "other": []
    }  # fmt: skip


def test_a_folder_inside_a_run_is_checked_too_and_a_copy_outside_is_not(home):
    run = home / "runs" / "short"
    double_b(run)
    shutil.copytree(run / "adapter", home / "mine")
    model = AutoModelForCausalLM.from_pretrained(home / "tiny-llama", dtype=torch.float32)
    for read in (lambda folder: package.inspect(str(folder)), lambda folder: package.read_peft(model, folder)):
        with pytest.raises(ResultError, match="copy the folder"):
            read(run / "adapter")
        read(home / "mine")


def test_a_folder_inside_a_run_is_checked_whatever_its_path(home, monkeypatch):
    run = home / "runs" / "short"
    double_b(run)
    (home / "link").symlink_to(run / "adapter")
    monkeypatch.chdir(run / "adapter")
    for path in (".", "../adapter", home / "link"):
        refused = rankwise("generate", path, "--prompt", "hi")
        assert refused.exit_code == 2 and "was changed after training" in refused.stderr, (path, refused.output)


def test_a_result_that_lies_behind_a_link_is_checked_too(home):
    run = home / "runs" / "short"
    double_b(run)
    (run / "adapter").rename(home / "moved")
    (run / "adapter").symlink_to(home / "moved")
    for path in ("short", run / "adapter"):
        assert "was changed after training" in rankwise("generate", path, "--prompt", "hi").stderr


@pytest.mark.parametrize("name", [".DS_Store", "._adapter_model.safetensors", "._adapter_config.json"])
def test_hidden_files_that_a_system_leaves_are_only_mentioned(home, name):
    replace(home / "runs" / "short" / "adapter" / name, b"x")
    read = rankwise("generate", "short", "--prompt", "hi", "--max-new-tokens", 2)
    assert read.exit_code == 0 and f"not loaded by programs: adapter/{name}" in read.stderr


def test_a_renamed_run_has_its_new_name_on_its_card_and_verifies(home):
    assert rankwise("runs", "rename", "short", "my_new.name").exit_code == 0
    run = home / "runs" / "my_new.name"
    assert "\n# my\\_new.name\n" in (run / "adapter" / "README.md").read_text()
    assert json.loads(rankwise("inspect", "my_new.name", "--json").stdout)["integrity"]["status"] == "verified"
    replace(run / "adapter" / "README.md", b"# Mine\n")
    assert rankwise("runs", "rename", "my_new.name", "again").exit_code == 0
    assert (home / "runs" / "again" / "adapter" / "README.md").read_bytes() == b"# Mine\n"


def test_a_whole_model_is_checked_wherever_it_is_read(home):
    file = home / "runs" / "short-full" / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    replace(file, bytes(content))
    for words in (
        ("generate", "short-full", "--prompt", "hi", "--max-new-tokens", 2),
        ("inspect", "short-full"),
        ("export", "short-full", "--to", "out", "--format", "merged"),
    ):
        refused = rankwise(*words)
        assert refused.exit_code == 2 and "model/model.safetensors was changed" in refused.stderr, refused.output
        assert rankwise(*words, "--force-result").exit_code == 0
    with pytest.raises(ResultError, match="copy the folder"):
        package.load(str(file.parent))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_is_an_error_and_not_a_traceback(home):
    run = home / "runs" / "short"
    replace(run / WEIGHTS, (run / WEIGHTS).read_bytes())
    (run / WEIGHTS).chmod(0)
    assert "cannot be read" in rankwise("inspect", "short").stderr
