"""Bad input: the exit code of its kind, one clear sentence that names the thing, no traceback, and nothing written.

Each row of the table is asked with --json; the first of each command and kind plainly too, which must say the same.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kit.command import done, rankwise

ENDLESS = r"((\w|\w\w|\.)+)+(?<=X)"


def lines(*rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


GOOD = [{"prompt": f"What is the capital of land {n}?", "completion": f"It is town {n}."} for n in range(6)]
FILES = {
    "rows.jsonl": lines(*GOOD),
    "broken.jsonl": lines(GOOD[0], '{"prompt": "half', GOOD[1]),
    "unanswered.jsonl": lines(
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
        {"messages": [{"role": "user", "content": "anybody?"}]},
    ),
    "empty.jsonl": "\n\n",
    "unknown.yaml": "model: base\ndata: rows.jsonl\nrun: r\nadapter:\n  rnk: 4\n",
    "object.yaml": "model: base\ndata: rows.jsonl\nrun: !!python/object/apply:os.system new\n",
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny_folder):
    """Files, a base model and a finished run "good" trained on it; tests work on copies."""
    folder = tmp_path_factory.mktemp("prepared")
    shutil.copytree(tiny_folder, folder / "base")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    with contextlib.chdir(folder):
        words = ("--run", "good", "--steps", 2, "--rank", 2)
        done("train", "--model", "base", "--data", "rows.jsonl", *words)
    return folder


@pytest.fixture
def home(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


# What can be wrong before a command is given. Each takes the home folder.


def without_weights(home):
    (home / "base" / "model.safetensors").unlink()


def cut_weights(home):
    file = home / "base" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def nonsense_weights(home):
    (home / "base" / "model.safetensors").write_bytes(b"\xff" * 5000)


def pickled_weights(home):
    without_weights(home)
    torch.save({}, home / "base" / "pytorch_model.bin")


def without_a_tensor(home):
    file = home / "base" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})


def without_config(home):
    (home / "base" / "config.json").unlink()


def without_tokenizer(home):
    for file in (home / "base").glob("token*"):
        file.unlink()


def damaged_tokenizer(home):
    (home / "base" / "tokenizer.json").write_text('{"version": ')


def changed_weights(home):
    file = home / "base" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def changed_template(home):
    (home / "base" / "chat_template.jinja").write_text("{{ messages[0].content }}")


def interrupted(home):
    manifest = json.loads((home / "runs" / "good" / "manifest.json").read_text())
    (home / "runs" / "good" / "manifest.json").write_text(json.dumps(manifest | {"status": "interrupted"}))
    shutil.rmtree(home / "runs" / "good" / "adapter")


def damaged_adapter(home):
    file = home / "runs" / "good" / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def damaged_manifest(home):
    (home / "runs" / "good" / "manifest.json").write_text('{"format": 1, "status": "fin')


def damaged_data_report(home):
    (home / "runs" / "good" / "data_report.json").write_text('{"version": 1, "rows": ')


def broken_metrics(home):
    (home / "runs" / "good" / "metrics.jsonl").write_text('{"kind": "ranks", "step": "two"}\n{}\n')


def nothing(home):
    (home / "none").mkdir()


def foreign_folder(home):
    (home / "runs" / "mine").mkdir()
    (home / "runs" / "mine" / "thesis.txt").write_text("irreplaceable")


@dataclass(frozen=True)
class Mistake:
    name: str
    words: tuple
    kind: str
    said: tuple
    before: object = None
    typed: object = None


def training(*words, model="base", data="rows.jsonl", run="new"):
    return ("train", "--model", model, "--data", data, "--run", run, *words)


def asking(*words, run="good", prompt="hi"):
    return ("generate", run, "--prompt", prompt, *words)


def exporting(*words, run="good", to="out"):
    return ("export", run, "--to", to, *words)


MISTAKES = [
    # rows
    Mistake("a run of two words", training(run="a b/c"), "ConfigError", ("--run", "'a b/c': a name has at most 64",)),
    Mistake("no data file", training(data="row.jsonl"), "DataError", ("row.jsonl", "no such file", '"rows.jsonl"')),
    Mistake("data is an empty folder", training(data="none"), "DataError", ("none", "no file of rows"), nothing),
    Mistake("bad JSON line", training(data="broken.jsonl"), "DataError", ("broken.jsonl:2", "not JSON")),
    Mistake("no answer in messages", training(data="unanswered.jsonl"), "DataError", ("unanswered.jsonl:2", "answer")),
    Mistake("no rows", training(data="empty.jsonl"), "DataError", ("empty.jsonl", "no rows")),
    Mistake("no such split", training("--set", "data.split=test"), "DataError", ("rows.jsonl", "data.split")),
    Mistake("answers all cut", training("--recipe", "alpaca", "--max-length", 20), "DataError", ("rows.jsonl",)),
    Mistake("all held out", training("--held-out", 6), "DataError", ("6 rows", "held_out is 6")),
    Mistake("rows too long", training("--max-length", 5), "DataError", ("rows.jsonl", "5 tokens", "--max-length")),
    # settings
    Mistake("unknown YAML key", ("train", "unknown.yaml"), "ConfigError", ("unknown.yaml:5", "adapter.rnk", '"rank"')),
    Mistake("YAML asks for an object", ("train", "object.yaml"), "ConfigError", ("object.yaml", "tag")),
    Mistake("no YAML file", ("train", "nowhere.yaml"), "ConfigError", ("nowhere.yaml", "cannot be read")),
    Mistake("unknown --set key", training("--set", "adapter.rnk=4"), "ConfigError", ("--set", "adapter.rnk", '"rank"')),
    Mistake("unknown recipe", training("--recipe", "alpacca"), "ConfigError", ("--recipe", "alpacca", "vicuna")),
    Mistake("rank 0", training("--rank", 0), "ConfigError", ("--rank", "adapter.rank", "0")),
    Mistake("dtype not there", training("--set", "model.dtype=float16"), "ConfigError", ("model.dtype", "float16")),
    Mistake("device not there", training("--set", "model.device=cuda:99"), "ModelError", ('"cuda:99"', "cpu")),
    # targets
    Mistake("wrong target", training("--targets", "q_prj"), "TargetError", ('"q_prj"', 'Did you mean "q_proj"')),
    Mistake("no such layer", training("--targets", "q_proj", "--layers", 7), "TargetError", ("q_proj", "0-1", "7")),
    Mistake("endless regex", training("--targets", ENDLESS), "TargetError", (ENDLESS, "too long")),
    Mistake("broken regex", training("--targets", "q_proj("), "TargetError", ("q_proj(", "not a valid regular")),
    Mistake("a block as target", training("--targets", "self_attn"), "TargetError", ("self_attn", "cannot be adapted")),
    Mistake(
        "wrong rank_pattern key", training("--set", "adapter.rank_pattern={q_prj: 4}"), "TargetError",
        ("rank_pattern", '"q_prj"', '"q_proj"'),
    ),
    # models
    Mistake("no such model", training(model="smollm2-135"), "ModelError", ("smollm2-135", '"smollm2-135m"', "OFFLINE")),
    Mistake("no such folder", training(model="./bases/x"), "ModelError", ("./bases/x", "not a local folder")),
    Mistake("model is a text file", training(model="rows.jsonl"), "ModelError", ("rows.jsonl", "is a file")),
    Mistake("no weights", training(), "ModelError", ("base", "no .safetensors"), without_weights),
    Mistake("cut weights", training(), "ModelError", ("base", "cannot be loaded"), cut_weights),
    Mistake("nonsense weights", training(), "ModelError", ("base", "cannot be loaded"), nonsense_weights),
    Mistake("pickled weights", training(), "ModelError", ("pytorch_model.bin", "pickle files"), pickled_weights),
    Mistake("a tensor missing", training(), "ModelError", ("model.layers.1.mlp.up_proj.weight",), without_a_tensor),
    Mistake("no config", training(), "ModelError", ("config.json", "cannot be read"), without_config),
    Mistake("no tokenizer", training(), "ModelError", ("base", "tokenizer"), without_tokenizer),
    Mistake("damaged tokenizer", training(), "ModelError", ("base", "tokenizer"), damaged_tokenizer),
    Mistake("pull nothing", ("models", "pull", "nobody/nothing"), "ModelError", ("nobody/nothing", "OFFLINE")),
    # runs
    Mistake("finished run again", training(run="good"), "RunError", ('"good"', "finished")),
    Mistake("unfinished run", training(run="good"), "RunError", ('"good"', "interrupted", "--restart"), interrupted),
    Mistake("foreign folder", training(run="mine"), "RunError", ("runs/mine", "thesis.txt"), foreign_folder),
    Mistake("no such run", asking(run="god"), "RunError", ('"god"', 'Did you mean "good"')),
    Mistake("no such run to chat with", ("chat", "god"), "RunError", ('"god"', 'Did you mean "good"'), None, "hi\n"),
    Mistake("asking an unfinished run", asking(), "RunError", ('"good"', "interrupted"), interrupted),
    Mistake("damaged adapter", asking(), "ResultError", ("adapter_model.safetensors", "changed"), damaged_adapter),
    Mistake("damaged manifest", asking(), "RunError", ("manifest.json", "damaged"), damaged_manifest),
    Mistake("damaged data report", asking(), "ResultError", ("data_report.json", "changed"), damaged_data_report),
    Mistake("other base", asking(), "RunError", ("base", "different weights", "--force-base"), changed_weights),
    Mistake("other template", asking(), "RunError", ("base", "has different chat_template.jinja ("), changed_template),
    Mistake("other base in chat", ("chat", "good"), "RunError", ("different weights",), changed_weights, "hi\n"),
    # looking and giving away
    Mistake("inspect no run", ("inspect", "god"), "RunError", ('"god"', 'Did you mean "good"')),
    Mistake("inspect an unfinished run", ("inspect", "good"), "RunError", ('"good"', "interrupted"), interrupted),
    Mistake("inspect a cut adapter", ("inspect", "good"), "ResultError", ("safetensors", "changed"), damaged_adapter),
    Mistake("inspect broken metrics", ("inspect", "good"), "RunError", ("metrics.jsonl", "damaged"), broken_metrics),
    Mistake("export no run", exporting(run="god"), "RunError", ('"god"', 'Did you mean "good"')),
    Mistake("export an unfinished run", exporting(), "RunError", ('"good"', "interrupted"), interrupted),
    Mistake("export over a folder", exporting(to="base"), "RunError", ("base", "already exists")),
    Mistake("export over a file", exporting(to="rows.jsonl"), "RunError", ("rows.jsonl", "already exists")),
    Mistake("export a Modelfile", exporting("--format", "modelfile"), "ConfigError", ("no format", "--format ollama")),
    Mistake("export for MLX", exporting("--format", "MLX"), "ConfigError", ("--format mlx", "mlx_lm")),
    Mistake("export into a run", exporting(to="runs/good/new"), "RunError", ("inside the run good",)),
    Mistake("merge with no format", exporting("--dtype", "float32"), "ConfigError", ("merged models",)),
    Mistake("export a cut adapter", exporting(), "ResultError", ("safetensors", "changed"), damaged_adapter),
    # questions
    Mistake("empty prompt", asking(prompt=" "), "DataError", ("prompt is empty",)),
    Mistake("empty stdin", asking(prompt="-"), "DataError", ("prompt is empty",), None, ""),
    Mistake("prompt too long", asking(prompt="dog " * 300), "ModelError", ("context", "256", "--max-new-tokens")),
    Mistake("prompt of broken bytes", asking(prompt="caf\udce9"), "DataError", ("prompt",)),
    Mistake("no new tokens", asking("--max-new-tokens", 0), "ConfigError", ("max_new_tokens", "0")),
    Mistake("cold temperature", asking("--temperature", -1), "ConfigError", ("temperature", "-1")),
]  # fmt: skip


CHANGED = "changed since training, but not loaded by programs: metrics.jsonl\n"
PLAINLY = set({(one.words[0], one.kind): one.name for one in reversed(MISTAKES)}.values())


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_told_in_one_clear_sentence_and_writes_nothing(home, mistake):
    """What else was changed in a run may stand before it."""
    if mistake.before:
        mistake.before(home)
    files = everything(home)
    told = rankwise(*mistake.words, "--json", typed=mistake.typed)
    assert isinstance(told.exception, SystemExit), f"a traceback: {told.exception!r}"
    assert told.exit_code == 2 and told.stdout.count("\n") == 1
    facts = json.loads(told.stdout)
    assert set(facts) == {"error", "kind", "exit_code"}
    assert (facts["kind"], facts["exit_code"]) == (mistake.kind, 2)
    assert told.stderr.removeprefix(CHANGED) == f"rankwise: {facts['error']}\n"
    if mistake.name in PLAINLY:
        plain = rankwise(*mistake.words, typed=mistake.typed)
        assert (plain.exit_code, plain.stdout, plain.stderr) == (2, "", told.stderr)
    sentence, *advice = facts["error"].split("\n")
    assert [line for line in advice if not line.endswith("use --on-bad-row skip.")] == [] and len(advice) < 2
    assert 15 < len(sentence) < 700
    assert [part for part in mistake.said if part not in sentence] == [], sentence
    assert everything(home) == files


def everything(folder: Path) -> dict[str, bytes]:
    """Every file and folder, but the locks that hold only a number."""
    return {
        str(path): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if path.name != ".lock"
    }  # fmt: skip


def test_all_bad_rows_are_told_at_once(home):
    (home / "bad.jsonl").write_text(lines(GOOD[0], "{", GOOD[1], {"prompt": "hm"}))
    result = rankwise(*training(data="bad.jsonl"))
    assert result.exit_code == 2
    first, second, advice = result.stderr.splitlines()
    assert "bad.jsonl:2" in first and "bad.jsonl:4" in second
    assert advice == "2 of 4 rows cannot be used. To leave them out, use --on-bad-row skip."


def test_an_unknown_option_is_typers_own_error(home):
    result = rankwise(*training("--raink", 4))
    assert result.exit_code == 2 and result.stdout == ""
    assert "--raink" in result.stderr and "--rank" in result.stderr and "Traceback" not in result.stderr


def test_a_number_that_is_none_is_typers_own_error(home):
    result = rankwise(*training("--rank", "four"))
    assert result.exit_code == 2 and result.stdout == "" and "--rank" in result.stderr


@pytest.mark.parametrize("verb", [("generate", "good", "--prompt", "hi"), ("chat", "good")])
def test_force_base_lays_the_adapter_over_changed_weights(home, verb):
    changed_weights(home)
    assert rankwise(*verb, typed="hi\n").exit_code == 2
    result = rankwise(*verb, "--force-base", "--max-new-tokens", 4, typed="hi\n")
    assert result.exit_code == 0 and result.stdout.strip()


def test_another_config_of_the_base_is_noticed_too(home):
    file = home / "base" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rms_norm_eps": 0.1}))
    result = rankwise(*asking())
    assert result.exit_code == 2 and "--force-base" in result.stderr


def test_an_unfinished_run_begins_again_when_asked(home):
    interrupted(home)
    done(*training("--restart", "--steps", 1, run="good"))
    assert json.loads((home / "runs" / "good" / "manifest.json").read_text())["results"]["steps"] == 1
    assert rankwise(*asking("--max-new-tokens", 2)).exit_code == 0


def test_a_loss_that_is_no_number_ends_the_run_with_one_and_leaves_no_adapter(home):
    file = home / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"][0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    named = rankwise(*training("--steps", 5, "--json"))
    assert named.exit_code == 2 and "lm_head.weight" in json.loads(named.stdout)["error"]
    assert not (home / "runs" / "new").exists(), "the fused backend looks before the run begins"
    result = rankwise(*training("--steps", 5, "--json", "--backend", "eager"))
    assert isinstance(result.exception, SystemExit) and result.exit_code == 1
    facts = json.loads(result.stdout)
    assert (facts["kind"], facts["exit_code"]) == ("Diverged", 1)
    assert "step 1 of 5" in facts["error"] and "nan" in facts["error"]
    manifest = json.loads((home / "runs" / "new" / "manifest.json").read_text())
    assert manifest["status"] == "failed" and "step 1 of 5" in manifest["problem"]
    assert not (home / "runs" / "new" / "adapter").exists()
