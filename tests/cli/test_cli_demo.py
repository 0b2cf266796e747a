"""`rankwise demo` on a tiny model: the shipped rows are written, trained on, and asked before and after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kit.command import printed
from rankwise.commands import demo as command
from rankwise.commands.demo import demo_rows


def test_a_demo_trains_on_the_shipped_rows_and_counts_both_sides(tiny_folder, tmp_path, monkeypatch):
    training, testing = demo_rows()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "demo_rows", lambda: (training[:24], testing[:3]))
    monkeypatch.setattr(command, "LONGEST_ANSWER", 4)
    facts = printed("demo", "--model", str(tiny_folder), "--quiet")
    assert facts["run"] == "demo" and facts["test_rows"] == 3 and facts["base_exact"] == 0
    assert Path("runs/demo-rows/train.jsonl").read_text().splitlines() == training[:24]
    report = json.loads(Path("runs/demo/data_report.json").read_text())
    assert report["rows"] == 24
    assert facts["trainable_parameters"] == pytest.approx(facts["adapter_bytes"] / 4, rel=0.5)
