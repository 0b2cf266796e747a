"""Two steps on the machine at hand: every method and form can be probed, and the plan goes by what was measured."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from rankwise.cli.main import app
from rankwise.config.experiment import Planned
from rankwise.errors import RunError
from rankwise.forward.plan import plan
from rankwise.planning.time import Probe
from rankwise.training import probe as probing
from rankwise.training import trainer


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    found = [{"prompt": f"say {n} " * (1 + n % 5), "completion": f"{n} it is"} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in found))
    return file


@pytest.fixture
def steps(monkeypatch):
    """Without the clock, whose steps of a tiny model are noise: seconds by the tokens that were in them."""
    seen = []

    def step(state, batches, loss_of, epoch, *more):
        tokens = sum(batch.tokens for batch in batches)
        seen.append((tokens, sum(batch.count for batch in batches)))
        record, ranks = original(state, batches, loss_of, epoch)
        return replace(record, seconds=0.5 + 0.01 * tokens), ranks

    original = trainer.optimizer_step
    monkeypatch.setattr(trainer, "optimizer_step", step)
    return seen


@pytest.mark.parametrize(("method", "backend"), [("lora", "auto"), ("adalora", "eager"), ("full", "auto")])
def test_every_method_is_probed_in_its_form(rows, tiny_folder, steps, method, backend):
    asked = Planned(
        model=str(tiny_folder),
        data=str(rows),
        adapter={"method": method},
        training={"backend": backend, "batch_size": 8},
    )
    found = probing.probe(asked)
    assert found.constant == pytest.approx(0.5) and found.per_token == pytest.approx(0.01)
    assert len(steps) == 2 * (probing.COUNTED + 1)
    (few, _), (many, learned) = steps[0], steps[-1]
    assert 0 < few < many
    made = plan(asked, measured=found)
    assert many == pytest.approx(made.step.tokens, rel=0.3)
    assert learned / many == pytest.approx(made.rows.supervised_share, rel=0.3)
    assert made.speed == found
    assert made.duration.step.likely == pytest.approx(0.5 + 0.01 * made.step.tokens)


def test_eva_is_probed_as_plain_lora_is(rows, tiny_folder, steps):
    asked = Planned(model=str(tiny_folder), data=str(rows), adapter={"method": "lora", "start": "eva"})
    assert probing.probe(asked).per_token == pytest.approx(0.01)


def test_a_machine_that_is_busy_tells_nothing():
    with pytest.raises(RunError, match="Run the probe again"):
        Probe.of((100, 2.0), (400, 1.9), machine="m", when="now")


def test_it_is_asked_for_by_a_flag(rows, tiny_folder, steps):
    words = ["plan", "--model", str(tiny_folder), "--data", str(rows), "--probe", "--json", "--quiet"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["speed"] == "measured" and told["seconds_low"] < told["seconds"] < told["seconds_high"]
