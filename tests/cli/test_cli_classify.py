"""`rankwise classify`: a table goes in, and the better of two runs is kept and used."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from kit import command
from kit.classifiers import WORDS, encoder_folder, labelled
from kit.light import outcomes

GO = ("classify", "rows.csv", "--text", "body", "--label", "kind", "--model", "bert", "--quiet")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("classify"))
        encoder_folder(Path("bert"))
        with open("rows.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "body", "kind"])
            for at, row in enumerate([*labelled(96), labelled(1)[0]]):
                neutral = " ".join(WORDS[8 + int(digit)] for digit in f"{at % 96:07b}")
                writer.writerow([at, f"{row['text']} {neutral}", row["label"]])
        yield


@pytest.fixture(scope="module")
def first(home):
    done = command.rankwise(*GO, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_it_says_what_is_in_the_rows_and_how_both_did_and_keeps_the_better(first):
    assert first["rows"] == 97 and first["held_out"] == 19 and set(first["labels"]) == {"good", "bad"}
    assert any("'id' is not used" in one for one in first["warnings"])
    assert any("repeat an earlier row" in one for one in first["warnings"])
    scores = first["accuracy"]
    assert scores[first["kept"]]["value"] == max(one["value"] for one in scores.values())
    assert ("adapter" in scores) == (first["gain"] is not None)
    assert all(one["low"] <= one["value"] <= one["high"] for one in scores.values())


def test_a_file_may_have_any_name_and_wrong_names_are_one_sentence(first, tmp_path):
    table = tmp_path / "Kunden Anfragen ü.csv"
    table.write_bytes(Path("rows.csv").read_bytes())
    done = command.rankwise("classify", str(table), *GO[2:], "--json")
    assert done.exit_code == 0 and Path(json.loads(done.stdout)["run"]).name.startswith("Kunden-Anfragen-"), done.output
    for wrong in (["--run", "a b"], ["--text", "kind"]):
        refused = command.rankwise(*GO, *wrong)
        assert refused.exit_code == 2 and refused.stderr.count("\n") == 1, refused.output


def test_both_are_runs_over_the_same_held_out_rows_which_chose_nothing(first):
    kept, records = Path(first["run"]), []
    for folder in Path("runs").glob("rows-[pa]*"):
        records.append(json.loads((folder / "config.json").read_text()))
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["status"] == "finished" and manifest["results"]["validation_loss_after"] is not None
    assert {one["validation"]["keep"] for one in records} == {"last"}
    assert len({json.dumps(one["data"]) for one in records}) == 1
    done = command.rankwise("predict", kept.name, "--text", "the film is bright", "--quiet")
    assert done.exit_code == 0 and ("good" in done.stdout or "bad" in done.stdout)


def test_the_fitted_head_is_kept_as_it_was_fitted(first):
    results = json.loads(Path("runs/rows-probe/manifest.json").read_text())["results"]
    assert results["validation_loss_after"] == pytest.approx(results["validation_loss_before"], abs=1e-6)


def test_what_file_and_runs_show_is_refused_before_torch_is_loaded(first):
    for way in ("probe", "adapter"):
        Path(f"runs/half-{way}").mkdir(exist_ok=True)
    Path("runs/half-adapter/manifest.json").write_text("{}")
    wrong = [(*GO[:3], "boddy", *GO[4:]), (*GO, "--run", "rows"), (*GO, "--run", "half")]
    for outcome in outcomes(wrong, Path.cwd()):
        assert outcome.code == 2 and not outcome.loaded & {"torch", "transformers"}, outcome.printed


def test_a_second_time_it_takes_the_next_free_name_and_says_what_is_next(first):
    done = command.rankwise(*GO)
    assert done.exit_code == 0 and Path("runs/rows-2-probe").is_dir()
    for line in (r"rows +97, of which 19 were", r"probe +accuracy", r"kept +", r"next +rankwise predict rows-2-"):
        assert re.search(f"^{line}", done.stdout, re.M), done.stdout


def test_a_column_that_is_not_there_is_refused_and_leaves_nothing(home):
    done = command.rankwise(*GO[:3], "boddy", *GO[4:], "--run", "wrong")
    assert done.exit_code == 2 and 'Did you mean "body"?' in done.output and not list(Path("runs").glob("wrong*"))
