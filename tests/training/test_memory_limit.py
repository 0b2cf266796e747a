"""A training under a limit of memory: the same numbers, settings that follow from it, and refusals."""

from __future__ import annotations

import json
import re

import psutil
import pytest

import rankwise
from rankwise.commands.train import train
from rankwise.config.adapters import FullConfig
from rankwise.config.models import ModelConfig, parse_size
from rankwise.config.reading import with_settings
from rankwise.config.training import TrainingConfig
from rankwise.errors import ConfigError, ResourceError
from rankwise.kernels.quantized.given_back import GivenBack
from rankwise.planning.devices import OF_LIMIT, find_device
from rankwise.runs.records import silent
from rankwise.system.memory import available_memory, limited_memory
from rankwise.training import preflight
from rankwise.training.workload import PREFIX_SHARE, prefix_room


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed = [{"prompt": f"say {n}", "completion": f"{n} it is"} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))


def experiment(name, run="run", **changes):
    training = TrainingConfig(steps=2, batch_size=4, matmul="bfloat16")
    return rankwise.Experiment(
        model=ModelConfig(name=str(name), **changes), data="rows.jsonl", training=training, run=run
    )


@pytest.mark.parametrize("quantize", ["auto", "int8"])
def test_a_limit_changes_no_loss(rows, tiny_folder, quantize):
    losses = []
    for memory in (None, "16GB"):
        trained = train(experiment(tiny_folder, f"run-{memory}", quantize=quantize, memory=memory))
        lines = [json.loads(line) for line in trained.run.metrics.read_text().splitlines()]
        losses.append([line["loss"] for line in lines if line["kind"] == "step"])
        layer = trained.model.module.model.layers[0].mlp.down_proj
        weight = getattr(layer, "base", layer).weight
        assert isinstance(getattr(weight, "format", None), GivenBack) == (memory is not None)
    assert losses[0] == losses[1] and len(losses[0]) == 2


def test_what_no_setting_brings_under_the_limit_is_refused_with_what_it_needs(rows, tiny_folder):
    with pytest.raises(ResourceError) as refused:
        train(experiment(tiny_folder, memory="50MB"))
    assert re.search(r"needs a limit of at least \d+\.\d GB of memory, but --memory is 50MB", str(refused.value))
    assert "give it that much, or use a smaller model" in str(refused.value)


def starter(memory: str, **training):
    """A forecast without loading anything; the rows are as long as rows may be."""
    settings = {
        "model": {"name": "smollm2-135m", "memory": memory, "dtype": "float32"},
        "data": "rows.jsonl",
        "run": "none",
    }
    return rankwise.Experiment.model_validate(settings | {"training": {"batch_size": 8, **training}})


@pytest.fixture
def long_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = json.dumps({"prompt": "say it", "completion": "so it is " * 100})
    (tmp_path / "rows.jsonl").write_text(f"{row}\n" * 40)


def test_blocks_and_tokens_follow_from_the_limit(long_rows):
    for memory, changed in (("9GB", set()), ("1.5GB", {"activation_checkpointing"}),
                            ("1.2GB", {"activation_checkpointing", "max_batch_tokens"})):  # fmt: skip
        asked = starter(memory)
        training, foreseen = preflight.within_limit(
            asked.training, preflight.foresee(with_settings(asked.explicit)), silent
        )
        differing = {name for name in TrainingConfig.model_fields
                     if getattr(training, name) != getattr(asked.training, name)}  # fmt: skip
        assert differing == changed, memory
        assert foreseen is not None and foreseen.plan.fit.fits
        assert foreseen.plan.forecast.needed <= OF_LIMIT * parse_size(memory)
        foreseen.check(silent, force=False)


def test_what_is_told_to_be_enough_is_enough(long_rows):
    asked = starter("300MB")
    _, foreseen = preflight.within_limit(asked.training, preflight.foresee(with_settings(asked.explicit)), silent)
    with pytest.raises(ResourceError) as caught:
        foreseen.check(silent, force=False)
    told = str(caught.value).partition("at least ")[2].partition(" of memory")[0].replace(" ", "")
    asked = starter(told)
    _, foreseen = preflight.within_limit(asked.training, preflight.foresee(with_settings(asked.explicit)), silent)
    foreseen.check(silent, force=False)


def test_a_backend_that_needs_more_than_the_chosen_settings_allow_is_refused(long_rows):
    """The blocks and tokens that were chosen for the fused backend are not chosen again for the eager one."""
    asked = starter("1.2GB")
    _, foreseen = preflight.within_limit(asked.training, preflight.foresee(with_settings(asked.explicit)), silent)
    foreseen.check(silent, force=False)
    eager = preflight.foresee_backend(foreseen, "eager", silent)
    assert eager is not None and eager.plan.forecast.needed > OF_LIMIT * parse_size("1.2GB")
    assert eager.least == eager.plan.forecast.needed
    with pytest.raises(
        ResourceError, match=r"with the eager backend these settings need \d\.\d GB .* --memory is 1.2GB"
    ):
        eager.check(silent, force=False)
    asked = starter("1.5GB", backend="eager")  # what the refusal advises
    _, chosen = preflight.within_limit(asked.training, preflight.foresee(with_settings(asked.explicit)), silent)
    chosen.check(silent, force=False)
    assert preflight.foresee_backend(foreseen, "fused", silent) is foreseen


def test_free_memory_is_what_the_limit_leaves():
    free, rss = available_memory(), psutil.Process().memory_info().rss
    with limited_memory(rss + 100_000_000):
        assert 0 < available_memory() < 110_000_000
    with limited_memory(1):
        assert available_memory() == 0
    assert available_memory() > 0.5 * free


def test_a_cache_of_states_fits_into_what_a_forecast_leaves():
    assert prefix_room(10**9) == PREFIX_SHARE * 10**9
    with limited_memory(10**9):
        assert prefix_room(10**9) < (1 - OF_LIMIT) * 10**9


def test_a_limit_is_for_a_processor_and_for_weights_that_are_frozen():
    card = find_device("rtx-4090")
    assert card.within_limit(None) is card
    with pytest.raises(ConfigError, match="on the CPU"):
        card.within_limit(10**9)
    asked = rankwise.Experiment(
        model=ModelConfig(name="smollm2-135m", memory="4GB"), data="rows.jsonl", adapter=FullConfig(), run="a"
    )
    assert asked.base.memory is None and asked.model.memory_bytes == 4 * 10**9


@pytest.mark.parametrize(("text", "size"), [
    ("6GB", 6 * 10**9), ("1.5 GiB", 3 * 2**29), ("800mb", 8 * 10**8), ("5 b", 5), ("2TB", 2 * 10**12),
])  # fmt: skip
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["6", "GB", "-1GB", "0GB", "6 gigs", "1e3GB", "9999999TB", "6ib"])
def test_no_sizes(text):
    with pytest.raises(ValueError, match="6GB or 800MB"):
        parse_size(text)
