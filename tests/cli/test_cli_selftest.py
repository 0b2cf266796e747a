"""`rankwise selftest`: each of its checks passes here, and sees what it is there to see."""

import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rankwise.cli.main import app
from rankwise.models.random_model import write_random_model
from rankwise.selftest import checks
from rankwise.selftest.bench import Bench, outcome
from rankwise.selftest.checks import CHECKS
from rankwise.selftest.damage import DAMAGES, damage
from rankwise.selftest.failing import KINDS, Fault


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("selftest")
    write_random_model(folder / "base")
    made = Bench(folder)
    made.prepare()
    made.undisturbed()
    return made


def test_every_check_is_tried_and_passes(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["selftest", "--minutes", "0", "--folder", str(tmp_path), "--json"])
    printed = json.loads(result.stdout)
    assert result.exit_code == 0 and printed["passed"] and printed["folder"] is None, printed
    assert {one["name"]: one["tried"] for one in printed["checks"]} == {check.name: 1 for check in CHECKS}
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_a_line_an_exit_code_and_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = checks.Check("kill", "nothing", lambda bench, draw: "the result differs")
    monkeypatch.setattr("rankwise.commands.selftest.CHECKS", (broken,))
    result = CliRunner().invoke(app, ["selftest", "--minutes", "0", "--folder", str(tmp_path)])
    assert result.exit_code == 1 and "0 of 1" in result.output and "the result differs" in result.output
    (left,) = tmp_path.iterdir()
    assert str(left) in result.output.replace("\n", "") and (left / "base" / "config.json").is_file()


def test_a_result_with_one_other_bit_is_seen(bench: Bench) -> None:
    name = bench.new_name()
    outcome(bench.begin(name))
    assert bench.differs(name) is None
    damage(bench.run(name) / "adapter" / "adapter_model.safetensors", "with one bit flipped")
    assert "differs" in (bench.differs(name) or "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_failing_operation_ends_a_training_that_can_be_finished(bench: Bench, kind: str) -> None:
    name = bench.new_name()
    command = bench.begin(name, fault=Fault(40, kind))
    problem, text = outcome(command)
    assert command.returncode != 0 and problem is None, text
    assert bench.differs(name) is None


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_changes_a_file(kind: str, tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_bytes(b"what was written")
    other.write_bytes(b"another")
    damage(file, kind, other)
    assert not file.exists() or file.read_bytes() != b"what was written"


def test_a_check_says_what_is_wrong_where_nobody_refuses_damage(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "damage", lambda *_: None)
    assert "exit code 0" in (checks.damaged_adapter(bench, random.Random(0)) or "")
