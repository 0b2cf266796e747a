"""A plan's parts load neither torch nor transformers, in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rankwise
from kit.light import loaded_by_each

SOURCE = Path(rankwise.__file__).parent
WHOLE = """
import sys
from pathlib import Path
from rankwise.planning.devices import DEVICES
from rankwise.planning.devices import graphics_cards, this_machine
from rankwise.planning.operations import Operations
from rankwise.planning.batches import average_step
from rankwise.config.modules import Layer
from rankwise.planning.shape import Blocks, ModelShape
from rankwise.planning.time import duration, speed_of
from rankwise.config.data import DataConfig
from rankwise.config.training import TrainingConfig
from rankwise.planning.tokens import TokenCounter
from rankwise.planning.rows import conversations_of

folder = Path(sys.argv[1])
data, training, ranks = DataConfig(path=str(folder / "rows.jsonl")), TrainingConfig(), {"h.0.attn.q": 4}
layers = (
    Layer("wte", "embedding", 50, 8, stage=-1), Layer("h.0.attn.q", "linear", 8, 8, stage=0),
    Layer("head", "linear", 8, 50, stage=0),
)
shape = ModelShape("m", "m", "AutoModelForCausalLM", layers, (Blocks(1, 8, 8, True),), 50, 64, "head")
rows = conversations_of(data, TokenCounter(folder), 64)
step = average_step(Operations(shape, rows.load, ranks), rows, training, rows.load)
for device in (this_machine(), *graphics_cards(), DEVICES["h100"]):
    speed = speed_of(device, device.dtype, 1)
    if speed is not None:
        print(duration(step, rows.steps(training), speed).total)
"""


def loaded_after(program: str, *argv: str) -> set[str]:
    tail = "\nimport sys\nprint('LOADED', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    done = subprocess.run(
        [sys.executable, "-c", program + tail, *argv],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(SOURCE.parent)},
    )  # fmt: skip
    return set(done.stdout.rpartition("LOADED ")[2].split())


MODULES = sorted(f"rankwise.planning.{path.stem}" for path in (SOURCE / "planning").glob("[a-z]*.py"))


@pytest.fixture(scope="module")
def loaded_by():
    """What each module loads that the ones before it had not."""
    return dict(zip(MODULES, loaded_by_each(MODULES), strict=True))


@pytest.mark.parametrize("module", MODULES)
def test_no_part_loads_torch(loaded_by, module):
    assert not loaded_by[module] & {"torch", "transformers", "tokenizers", "jinja2"}


def test_the_search_sees_what_a_module_loads():
    assert "torch" in loaded_by_each(["rankwise.errors", "torch", "rankwise.planning"])[1]


def test_a_whole_plan_loads_no_torch(tmp_path, family_folder):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "one", "completion": "two"}) + "\n")
    for file in family_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    loaded = loaded_after(WHOLE, str(tmp_path))
    assert "tokenizers" in loaded and not loaded & {"torch", "transformers", "jinja2"}


@pytest.fixture
def family_folder(tmp_path_factory):
    from kit.families import BY_NAME, hub_of

    folder = tmp_path_factory.mktemp("tokenizer")
    hub_of(BY_NAME["chatml"], "gpt2").save_pretrained(folder)
    return folder
