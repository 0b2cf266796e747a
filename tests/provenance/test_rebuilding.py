"""`rankwise rebuild`: the same bytes from the same rows, a changed row by its line, and of somebody else's folder only
settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from kit.command import done, printed, rankwise
from rankwise.config.base import Config
from rankwise.config.experiment import Experiment, places_in
from rankwise.system.files import sha256_of

ROWS = {"lora": "rows.jsonl", "short-full": "rows.jsonl", "films": "films.jsonl", "pictures": "pictures"}


@pytest.fixture
def home(library, tmp_path, monkeypatch):
    monkeypatch.chdir(library.lay_out(tmp_path / "home", *ROWS, "adalora"))
    return Path.cwd()


@pytest.mark.parametrize("run", ROWS)
def test_a_run_is_rebuilt_byte_for_byte(home, run):
    found = printed("rebuild", run, "--data", ROWS[run], "--quiet")
    assert found["status"] == "same bytes" and found["differing"] == [] and found["distance"] is None
    kind = "model" if run == "short-full" else "adapter"
    (weights,) = (home / "runs" / run / kind).glob("*.safetensors")
    assert (home / "runs" / f"{run}-rebuilt" / kind / weights.name).read_bytes() == weights.read_bytes()


def test_an_export_is_rebuilt_from_its_folder_alone(home):
    """AdaLoRA, with validation rows of their own; the export has another form than the run's adapter."""
    done("export", "adalora", "--to", "out", "--format", "portable")
    shutil.rmtree("runs")
    rows = ("--data", "rows.jsonl", "--data", "apart.jsonl")
    assert "--base-model" in rankwise("rebuild", "out", *rows).stderr
    assert "2 files or folders of rows" in rankwise("rebuild", "out", "--data", "rows.jsonl").stderr
    found = printed("rebuild", "out", *rows, "--base-model", "tiny-llama", "--run", "again", "--quiet")
    assert found["status"] == "same bytes" and found["run"] == "again"


def change(rows: list[str]) -> list[str]:
    return [*rows[:4], rows[4].replace("town", "city"), *rows[5:]]


CHANGES = {
    "changed": (change, ["other.jsonl:5 was changed"]),
    "added": (lambda rows: [*rows[:3], '{"prompt": "a", "completion": "b"}\n', *rows[3:]], ["other.jsonl:4 was added"]),
    "missing": (lambda rows: [*rows[:6], *rows[7:]], ["row 7 of rows.jsonl is missing"]),
    "copied": (lambda rows: [*rows, rows[0]], ["other.jsonl:13 was added"]),
    "two": (lambda rows: change([*rows[:9], *rows[10:]]),
            ["other.jsonl:5 was changed", "row 10 of rows.jsonl is missing"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGES)
def test_a_row_that_is_another_is_named_and_nothing_is_trained(home, kind):
    changed, lines = CHANGES[kind]
    rows = (home / "rows.jsonl").read_text().splitlines(keepends=True)
    Path("other.jsonl").write_text("".join(changed(rows)))
    refused = rankwise("rebuild", "lora", "--data", "other.jsonl")
    assert refused.exit_code == 2 and refused.stderr.splitlines()[1:] == lines
    assert not (home / "runs" / "lora-rebuilt").exists()


def test_rows_that_are_only_written_otherwise_are_the_same(home):
    Path("other.jsonl").write_text(Path("rows.jsonl").read_text().replace('", "', '",    "'))
    assert printed("rebuild", "lora", "--data", "other.jsonl", "--quiet")["status"] == "same bytes"


def test_a_changed_image_is_named(home):
    dark, light = (sorted((home / "pictures" / name).iterdir())[0] for name in ("dark", "light"))
    shutil.copy(light, dark)
    assert f"pictures/dark/{dark.name} was changed" in rankwise("rebuild", "pictures", "--data", "pictures").stderr


def test_another_base_is_refused_by_what_differs(home):
    tensors = load_file("tiny-llama/model.safetensors")
    save_file({name: value + 1 for name, value in tensors.items()}, "tiny-llama/model.safetensors", {"format": "pt"})
    refused = rankwise("rebuild", "lora", "--data", "rows.jsonl")
    assert refused.exit_code == 2 and "has different weights" in refused.stderr


def test_on_another_machine_the_distance_is_measured(home):
    """As if it had been trained elsewhere, where sums round otherwise."""
    done("export", "lora", "--to", "out")
    tensors = load_file("out/adapter_model.safetensors")
    save_file(
        {name: value * (1 + 1e-3) for name, value in tensors.items()}, "out/adapter_model.safetensors", {"format": "pt"}
    )
    facts = json.loads(Path("out/training.json").read_text())
    facts["weights"] = {"adapter_model.safetensors": sha256_of(Path("out/adapter_model.safetensors"))}
    Path("out/training.json").write_text(json.dumps(facts))
    words = ("rebuild", "out", "--data", "rows.jsonl", "--base-model", "tiny-llama", "--quiet")
    here = rankwise(*words, "--json")
    found = json.loads(here.stdout)
    assert here.exit_code == 1 and found["status"] == "different" and found["machine"] == []
    assert found["distance"][0] > 0 and found["distance"][1] == pytest.approx(1e-3, rel=0.01)
    facts["machine"]["processor"] = "another"
    Path("out/training.json").write_text(json.dumps(facts))
    there = rankwise(*words, "--run", "there")
    assert there.exit_code == 0 and "processor was another" in there.stdout and "of the weights (norms)" in there.stdout


def tampered(**parts: object) -> dict:
    facts = json.loads(Path("out/training.json").read_text())
    for path, value in parts.items():
        *folders, key = path.split("__")
        part = facts["settings"]
        for name in folders:
            part = part[name]
        part[key] = value
    return facts


HOSTILE = {
    "an adapter": ({"adapter__start_from": "/etc"}, "start_from"),
    "a schema": ({"data__answer_schema": "/etc/passwd"}, "answer_schema"),
    "a text": ({"training__anchor": {"text": "/etc/passwd"}}, "text"),
    "replayed rows": ({"training__replay": {"data": "/etc/passwd"}}, "path"),
    "a task": ({"training__anchor": {"forget_at_most": "5%", "tasks": ["/etc/x.yaml"]}}, "tasks"),
    "no setting": ({"training__hook": "os.system"}, "damaged"),
    "a number that is none": ({"training__steps": "many"}, "damaged"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_somebody_elses_folder_names_is_not_read(home, kind):
    done("export", "lora", "--to", "out")
    parts, word = HOSTILE[kind]
    Path("out/training.json").write_text(json.dumps(tampered(**parts)))
    refused = rankwise("rebuild", "out", "--data", "rows.jsonl", "--base-model", "tiny-llama")
    assert refused.exit_code == 2 and word in refused.stderr and "Traceback" not in refused.output
    assert not (home / "runs" / "out-rebuilt").exists()


@pytest.mark.parametrize(
    ("file", "part", "value"),
    [("training.json", "weights", {"../secret.safetensors": "0"}), ("data_report.json", "row_hashes", "A"),
     ("training.json", "machine", {"threads": "many"}), ("training.json", "settings", [])],
)  # fmt: skip
def test_records_of_somebody_elses_folder_are_read_strictly(home, file, part, value):
    done("export", "lora", "--to", "out")
    content = json.loads(Path("out", file).read_text())
    (content["files"][0] if part == "row_hashes" else content)[part] = value
    Path("out", file).write_text(json.dumps(content))
    Path("other.jsonl").write_text(Path("apart.jsonl").read_text())
    refused = rankwise("rebuild", "out", "--data", "other.jsonl", "--base-model", "tiny-llama")
    assert refused.exit_code == 2 and "Traceback" not in refused.output


def test_paths_trackers_names_and_code_of_somebody_elses_folder_have_no_effect(home):
    done("export", "lora", "--to", "out")
    parts = {"data__path": "/etc/passwd", "model__name": "/etc", "model__trust_code": "0" * 40, "run": "lora",
             "tracking": {"log_to": ["mlflow"]}}  # fmt: skip
    Path("out/training.json").write_text(json.dumps(tampered(**parts)))
    found = printed("rebuild", "out", "--data", "rows.jsonl", "--base-model", "tiny-llama", "--quiet")
    assert found["status"] == "same bytes" and found["run"] == "out-rebuilt"
    settings = json.loads((home / "runs" / "out-rebuilt" / "config.json").read_text())
    assert settings["tracking"]["log_to"] == [] and settings["model"]["trust_code"] is None


def test_training_json_holds_no_folder_of_this_machine(home):
    run = (
        "--run",
        "elsewhere",
        "--model",
        home / "tiny-llama",
        "--data",
        home / "rows.jsonl",
        "--steps",
        "1",
        "--quiet",
    )
    done("train", *run, "--set", "model.dtype=float32")
    folder = Path("runs/elsewhere/adapter")
    text = (folder / "training.json").read_text()
    weights = {file.name: sha256_of(file) for file in folder.glob("*.safetensors")}
    assert weights and json.loads(text)["weights"] == weights
    assert str(home) not in text and '"path": "rows.jsonl"' in text and '"name": "tiny-llama"' in text


TEXTS = {
    "model.revision", "data.prompt", "data.completion", "data.split", "data.subset", "data.revision", "data.licence",
    "data.delimiter", "data.encoding", "data.sheet", "data.field", "data.group", "data.recipe", "data.system",
    "data.answer_regex", "model.memory", "model.device", "model.trust_code", "run", "tracking.project",
}  # fmt: skip
"""Settings that are texts and name nothing outside."""


def test_every_setting_that_is_a_text_is_known_to_name_something_or_nothing():
    """A new one must be put into `places_in`, or into the list above."""
    model, data = {"name": "m"}, {"path": "d", "answer_schema": "s"}
    settings = Experiment(model=model, data=data, run="r").model_dump(mode="json")
    named = {key for _, key in places_in(settings)} | {"name", "answer_grammar", "path"}

    def texts(config: Config, at: str) -> set[str]:
        found = set[str]()
        for name, field in type(config).model_fields.items():
            value, path = getattr(config, name), f"{at}{name}"
            if isinstance(value, Config):
                found |= texts(value, f"{path}.")
            elif field.annotation in (str, str | None):
                found.add(path)
        return found

    experiment = Experiment(model=model, data=data, run="r")
    unknown = {one for one in texts(experiment, "") if one not in TEXTS and one.rpartition(".")[2] not in named}
    assert unknown == {"adapter.start_from"}  # which has no value here
