"""A manifest comes back from its JSON as it was, and the facts it takes from the machine are facts."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime

import psutil
import pytest

from rankwise import __version__
from rankwise.errors import ConfigError
from rankwise.runs.manifest import (
    PACKAGES,
    BaseModelFacts,
    DataFacts,
    Manifest,
    Results,
    now,
    peak_rss,
    usable_cores,
    versions,
)
from rankwise.system.extras import installed_version

FACTS = {
    "base_model": BaseModelFacts(name="m", source="here", fingerprint="f", dtype="bfloat16", device="cuda:0"),
    "data": DataFacts(
        path="é", sha256="0", format="prompt", rows=3, training_sequences=1, validation_sequences=1,
        rows_too_long=1, tokens=9, loss_tokens=3,
    ),
    "learning_rate": 1e-3,
}  # fmt: skip
RESULTS = Results(
    steps=1, loss=0.1, validation_loss_before=2.5, validation_loss_after=None, validation_loss_tokens=3,
    train_seconds=1.5, tokens_per_second=6.0, peak_rss_bytes=1, trainable_parameters=2, total_parameters=3,
    adapter_bytes=4,
)  # fmt: skip


@pytest.mark.parametrize(
    "values",
    [
        {"status": "running"},
        {"status": "finished", "ended": "x", "results": RESULTS},
        {"status": "failed", "problem": "é"},
    ],
)
def test_a_manifest_written_as_json_and_read_again_is_the_same(values):
    manifest = Manifest(**FACTS, **values)
    assert Manifest(**json.loads(json.dumps(manifest.model_dump(mode="json"), allow_nan=False))) == manifest


def test_a_manifest_of_another_format_or_with_unknown_facts_is_refused():
    for values in ({"format": 2}, {"status": "done"}, {"colour": "red"}):
        with pytest.raises(ConfigError):
            Manifest(**FACTS | {"status": "running"} | values)


def test_a_manifest_says_who_made_it_where_and_when():
    before = datetime.now(UTC).replace(microsecond=0)
    manifest = Manifest(**FACTS, status="running")
    assert before <= datetime.fromisoformat(manifest.started) <= datetime.now(UTC)
    assert manifest.command[1:] == sys.argv[1:]
    assert manifest.versions["python"] == platform.python_version()
    assert set(manifest.versions) == {"python", *PACKAGES}
    assert manifest.versions["rankwise"] == __version__
    assert manifest.machine["memory_bytes"] == psutil.virtual_memory().total
    assert 1 <= manifest.machine["cores"] <= os.cpu_count()
    assert manifest.machine["processor"]


def test_the_command_holds_no_path_of_the_machine():
    assert os.sep not in Manifest(**FACTS, status="running").command[0]


def test_versions_are_those_of_the_modules_in_use():
    import torch
    import transformers

    assert versions()["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert versions()["transformers"] == transformers.__version__
    assert installed_version("no-such-package-as-this") == "not installed"


def test_times_are_utc_to_the_second():
    assert now().endswith("+00:00")
    assert "." not in now()


def test_the_peak_of_memory_is_in_bytes_and_never_below_what_is_held():
    held = psutil.Process().memory_info().rss
    peak = peak_rss()
    assert held * 0.9 <= peak <= psutil.virtual_memory().total
    block = bytearray(os.urandom(1)) * (200 << 20)
    assert peak_rss() >= psutil.Process().memory_info().rss * 0.9 >= len(block) * 0.9
    del block
    assert peak_rss() >= 200 << 20, "a peak does not fall"


def test_usable_cores_are_those_this_process_may_run_on():
    assert usable_cores() == (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system is asked in another way")
def test_a_peak_is_not_that_of_who_started_the_process():
    block = bytearray(300 << 20)
    block[::4096] = b"x" * len(block[::4096])
    program = "from rankwise.runs.manifest import peak_rss; print(peak_rss())"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(found.stdout) < len(block) < peak_rss()
