"""A disk that refuses a file: exit code 4, one sentence with what and where, and no half-written thing left behind.

The refusal is real: a limit on the size of files, set in the process that trains, as a quota would.
"""

from __future__ import annotations

import contextlib
import json
import os

import pytest

from kit.command import rankwise
from kit.processes import ended


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk")
    rows = [{"prompt": f"What is land {n}?", "completion": f"It is town {n}."} for n in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with contextlib.chdir(folder):
        yield folder


def train_words(model, run, *words):
    given = ("train", "--model", model, "--data", "rows.jsonl", "--run", run, "--batch-size", 2, "--rank", 8, *words)
    return [str(word) for word in given]


# The adapter of rank 8 has some 35 kB, a checkpoint three times as much, 200 steps of metrics 60 kB.
@pytest.mark.parametrize(
    ("refused", "limit", "steps", "every"),
    [("adapter", 20_000, 3, 9), ("metrics.jsonl", 20_000, 200, 999), ("checkpoints/step-2", 50_000, 3, 2)],
)
def test_a_file_that_the_disk_refuses_ends_the_run_with_four(home, tiny_folder, refused, limit, steps, every):
    name = f"no-{refused.partition('.')[0].partition('/')[0]}"
    words = train_words(tiny_folder, name, "--steps", steps, "--set", f"training.checkpoint_steps={every}")
    command = ended(*words, "--quiet", "--json", largest=limit)
    out, err = command.output()
    run = home / "runs" / name
    assert not (run / "adapter").exists()
    assert [str(path) for path in home.rglob("*.tmp*")] == []
    assert not (run / "manifest.json").exists() or (
        json.loads((run / "manifest.json").read_text())["status"] in {"running", "failed"}
    )
    assert "Traceback" not in err, err[-500:]
    assert command.returncode == 4
    facts = json.loads(out)
    assert (facts["kind"], facts["exit_code"]) == ("ResourceError", 4)
    assert f"runs/{name}/{refused}" in facts["error"] and "MB free" in facts["error"] and "\n" not in facts["error"]
    assert err == f"rankwise: {facts['error']}\n"
    again = rankwise(*train_words(tiny_folder, name, "--steps", 2, "--restart"))
    assert again.exit_code == 0, again.output
    assert (run / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_named(home, tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_bytes((home / "rows.jsonl").read_bytes())
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o500)
    monkeypatch.chdir(tmp_path)
    refused = rankwise(*train_words(tiny_folder, "new", "--steps", 2))
    (tmp_path / "runs").chmod(0o700)
    assert isinstance(refused.exception, SystemExit) and refused.exit_code == 2
    assert "runs/new" in refused.stderr and "cannot be written" in refused.stderr


def test_a_file_in_place_of_the_runs_folder_is_told_not_thrown(home, tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_bytes((home / "rows.jsonl").read_bytes())
    (tmp_path / "runs").write_text("a file")
    monkeypatch.chdir(tmp_path)
    refused = rankwise(*train_words(tiny_folder, "new", "--steps", 2))
    assert isinstance(refused.exception, SystemExit), f"a traceback: {refused.exception!r}"
    assert refused.exit_code == 2 and "runs" in refused.stderr
