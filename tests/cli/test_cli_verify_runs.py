"""`rankwise runs verify`: whole runs are said to be whole, and each damaged file is named."""

import json
from pathlib import Path

import pytest

from kit.command import rankwise
from kit.damage import DAMAGES, damage
from kit.library import Library
from kit.small_runs import NAME, RUN, STEPS, Workshop


def verified(*names: str) -> tuple[int, dict[str, list[str]]]:
    result = rankwise("runs", "verify", *names, "--json")
    printed = json.loads(result.stdout)
    assert printed["whole"] == (result.exit_code == 0)
    return result.exit_code, {run["name"]: run["problems"] for run in printed["runs"]}


def test_whole_runs_are_whole(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(library.lay_out(tmp_path / "home", "short", "short-full"))
    assert verified() == (0, {"short": [], "short-full": []})
    text = rankwise("runs", "verify", "short").output
    assert text.startswith("short: whole, ") and "short-full" not in text


@pytest.mark.parametrize("kind", DAMAGES[:-1])
def test_a_damaged_result_is_named(
    kind: str, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(library.lay_out(tmp_path / "home", "short", "short-full"))
    damage(Path("runs/short/adapter/adapter_model.safetensors"), kind)
    code, problems = verified()
    assert code == 2 and problems["short-full"] == []
    (problem,) = problems["short"]
    assert "adapter_model.safetensors" in problem


def test_a_damaged_checkpoint_and_settings_are_named(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Workshop(tmp_path, tiny_folder).train_until(STEPS - 1)
    monkeypatch.chdir(tmp_path)
    assert verified() == (0, {NAME: []})
    newest = max(RUN.glob("checkpoints/step-*"), key=lambda path: int(path.name.partition("-")[2]))
    damage(newest / "state.safetensors", "with one bit flipped")
    (RUN / "data_report.json").unlink()
    code, problems = verified()
    assert code == 2 and len(problems[NAME]) == 2
    assert "data_report.json" in problems[NAME][0]
    assert f"{newest.name}/state.safetensors is damaged: its content" in problems[NAME][1]
