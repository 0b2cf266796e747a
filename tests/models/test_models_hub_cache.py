"""A hub model that is cached loads without the network, and its code runs only for the commit that was named.

Each claim is tried in a process of its own, since the hub client reads its folders from the environment once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

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


def test_a_cached_model_loads_by_name_without_one_connection(tmp_path, tiny_folder):
    snapshot = cached(tmp_path, tiny_folder, "some/model")
    facts = python(
        "import sys, json\n"
        "tried = []\n"
        "sys.addaudithook(lambda event, given: event in ('socket.connect', 'socket.getaddrinfo') and "
        "tried.append(str(given)))\n"
        "from rankwise.models.loading import load\n"
        "from rankwise.models.sources import cached_hub_models\n"
        "model = load('some/model')\n"
        "print(json.dumps([str(model.source.folder), model.source.where, model.facts.name, list(cached_hub_models()), "
        "tried]))\n",
        tmp_path,
    )
    assert facts == [str(snapshot), "hub", "some/model", ["some/model"], []]


def test_code_of_a_cached_model_runs_only_for_the_commit_that_was_named(tmp_path, tiny_folder):
    snapshot = cached(tmp_path, tiny_folder, "some/code")
    config = json.loads((snapshot / "config.json").read_text())
    (snapshot / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}))
    (snapshot / "modeling_x.py").write_text(
        "import os\n"
        "from pathlib import Path\n"
        "from transformers import LlamaForCausalLM\n"
        "Path(os.environ['CANARY']).write_text('ran')\n"
        "class X(LlamaForCausalLM):\n"
        "    pass\n"
    )
    tries = python(
        "import json, os\n"
        "from pathlib import Path\n"
        "from rankwise.errors import RemoteCodeError\n"
        "from rankwise.models.loading import load\n"
        "from rankwise.spec.models import ModelSpec\n"
        "def tried(commit):\n"
        "    try:\n"
        "        outcome = type(load(ModelSpec(name='some/code', trust_code=commit)).module).__name__\n"
        "    except RemoteCodeError:\n"
        "        outcome = 'refused'\n"
        "    return [outcome, Path(os.environ['CANARY']).exists()]\n"
        f"print(json.dumps([tried(None), tried('{OTHER}'), tried('{COMMIT}')]))\n",
        tmp_path,
        CANARY=str(tmp_path / "canary"),
    )
    assert tries == [["refused", False], ["refused", False], ["X", True]]


@pytest.mark.parametrize("stray", ["models--a--b--c", "models--", "models--some--empty"])
def test_a_stray_folder_in_the_hub_cache_does_no_harm(tmp_path, stray):
    (tmp_path / "hub" / stray).mkdir(parents=True)
    found = python(
        "import json\nfrom rankwise.models.sources import cached_hub_models\nprint(json.dumps(cached_hub_models()))\n",
        tmp_path,
    )
    assert found == {}
