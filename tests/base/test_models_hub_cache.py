"""A hub model that is cached loads without the network, and its code runs only for the commit that was named.

The claim about code is tried in a process of its own, which is left with that code.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys

from huggingface_hub import constants

from rankwise.base.cached import cached_hub_models
from rankwise.base.loading import load

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "89abcdef0123456789abcdef0123456789abcdef"


def cached(home, tiny_folder, name):
    """The tiny model where the hub client would have put it; returns the snapshot's folder."""
    place = home / "hub" / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    return shutil.copytree(tiny_folder, place / "snapshots" / COMMIT)


def python(program, home, **environment):
    names = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_"))}
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True,
        env={**names, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", **environment},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(ended.stdout.splitlines()[-1])


def test_a_cached_model_loads_by_name_without_one_connection(tmp_path, tiny_folder, monkeypatch):
    snapshot, tried = cached(tmp_path, tiny_folder, "some/model"), []
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", lambda *given: tried.append(given))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **named: tried.append(given))
    model = load("some/model")
    assert (model.source.folder, model.facts.name) == (snapshot, "some/model")
    assert model.source.where == f"hub, commit {snapshot.name[:12]}"
    assert list(cached_hub_models()) == ["some/model"] and tried == []


MODELING = """
import os
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path(os.environ["CANARY"]).write_text("ran")
class XConfig(LlamaConfig):
    model_type = "x-llama"
class X(LlamaForCausalLM):
    config_class = XConfig
"""
TRY = """
import json, os
from pathlib import Path
from rankwise.errors import RemoteCodeError
from rankwise.base.loading import load
from rankwise.config.models import ModelConfig
def tried(name, commit):
    try:
        outcome = type(load(ModelConfig(name=name, trust_code=commit)).module).__name__
    except RemoteCodeError as error:
        outcome = "refused" if "modeling_x.py" in str(error) else str(error)
    return [outcome, Path(os.environ["CANARY"]).exists()]
"""


def with_code(snapshot, **changes):
    (snapshot / "modeling_x.py").write_text(MODELING)
    config = json.loads((snapshot / "config.json").read_text()) | changes
    (snapshot / "config.json").write_text(json.dumps(config))


def test_code_of_a_cached_model_runs_only_for_the_commit_that_was_named(tmp_path, tiny_folder):
    """Also beside a known architecture, whose folder once passed, so that naming any commit let its code run."""
    own = {"AutoConfig": "modeling_x.XConfig", "AutoModelForCausalLM": "modeling_x.X"}
    with_code(cached(tmp_path, tiny_folder, "some/known"), auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    with_code(cached(tmp_path, tiny_folder, "some/code"), model_type="x-llama", auto_map=own)
    tries = [f"tried('some/known', {commit!r})" for commit in (None, OTHER)]
    tries += [f"tried('some/code', {commit!r})" for commit in (None, OTHER, COMMIT)]
    *known, first, second, named = python(
        f"{TRY}\nprint(json.dumps([{', '.join(tries)}]))", tmp_path, CANARY=str(tmp_path / "canary")
    )  # fmt: skip
    assert [ran for _, ran in known] == [False, False]
    assert {outcome for outcome, _ in known} <= {"refused", "LlamaForCausalLM"}
    assert [first, second, named] == [["refused", False], ["refused", False], ["X", True]]


def test_stray_folders_in_the_hub_cache_do_no_harm(tmp_path, monkeypatch):
    for stray in ("models--a--b--c", "models--", "models--some--empty"):
        (tmp_path / "hub" / stray).mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert cached_hub_models() == {}
