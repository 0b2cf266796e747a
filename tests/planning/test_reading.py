"""Where shapes come from, what is refused and with what words, and that none of it brings torch."""

from __future__ import annotations

import json
import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest

from kit.planning_models import SMALL, refusal, shape_of, shape_of_small, written_config
from kit.processes import WARM
from rankwise.errors import ModelError

LLAMA = {
    "model_type": "llama", "vocab_size": 97, "hidden_size": 24, "intermediate_size": 44, "num_hidden_layers": 3,
    "num_attention_heads": 4,
}  # fmt: skip
DEEP = "[" * 100_000


def _of(name: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": SMALL[name][0]} | SMALL[name][1] | changes


def _without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in LLAMA.items() if key not in keys}


HOSTILE: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "not JSON"),
    "empty": ("", "not JSON"),
    "a list": ([1, 2], "contains a list"),
    "null": (None, "contains a NoneType"),
    "deep": (DEEP, "not JSON"),
    "not UTF-8": (b"\xff\xfe{}", "not JSON"),
    "a long number": ('{"model_type": "llama", "hidden_size": ' + "9" * 5000 + "}", "not JSON"),
    "nothing": ({}, '"model_type" is missing'),
    "no model_type": (_without("model_type"), '"model_type" is missing'),
    "another model_type": (
        LLAMA | {"model_type": "lama"},
        "model_type 'lama' is not known to transformers. Did you mean \"llama\"",
    ),
    "a model_type that is none": (LLAMA | {"model_type": ["llama"]}, "\"model_type\" is ['llama']"),
    "quantised": (LLAMA | {"quantization_config": {"bits": 4}}, '"quantization_config": quantised weights'),
    "negative": (LLAMA | {"hidden_size": -24}, '"hidden_size" is -24; every model has at least 1'),
    "zero heads": (LLAMA | {"num_attention_heads": 0}, "transformers cannot build this model"),
    "a billion blocks": (LLAMA | {"num_hidden_layers": 10**9}, '"num_hidden_layers" is 1000000000'),
    "a million blocks": (_of("gpt2", n_layer=10**6), '"n_layer" is 1000000; at most 2,000 layers'),
    "blocks without end in a nest": (LLAMA | {"text_config": {"num_layers": 10**8}}, '"num_layers" is 100000000'),
    "a huge width": (LLAMA | {"hidden_size": 10**300}, '"hidden_size" is 1000'),
    "a huge vocabulary": (LLAMA | {"vocab_size": 10**12}, '"vocab_size" is 1000000000000'),
    "NaN": ('{"model_type": "llama", "hidden_size": NaN}', '"hidden_size" is nan'),
    "infinity": ('{"model_type": "llama", "hidden_size": Infinity}', '"hidden_size" is inf'),
    "a float": (LLAMA | {"hidden_size": 24.0}, "'hidden_size' expected int, got float (value: 24.0)"),
    "a text": (LLAMA | {"hidden_size": "24"}, "'hidden_size' expected int, got str (value: '24')"),
    "a nest": (LLAMA | {"hidden_size": {"a": [{"b": 1}]}}, "'hidden_size' expected int, got dict"),
    "a text for a switch": (LLAMA | {"mlp_bias": "false"}, "'mlp_bias' expected bool, got str (value: 'false')"),
    "heads that do not divide": (LLAMA | {"num_attention_heads": 5}, "is not a multiple of the number of attention"),
    "an unknown activation": (_of("t5", feed_forward_proj="a-b-c"), "a-b-c"),
}


@pytest.mark.timeout(60)  # where one hangs
@pytest.mark.parametrize("case", HOSTILE)
def test_a_config_that_cannot_be_planned_is_refused_by_name_at_once(case: str, tmp_path: Path) -> None:
    content, told = HOSTILE[case]
    file = tmp_path / "config.json"
    written = content if isinstance(content, str | bytes) else json.dumps(content)
    file.write_bytes(written if isinstance(written, bytes) else written.encode())
    said = refusal(str(tmp_path))
    assert str(file) in said and told in said


def test_all_that_stands_against_a_config_is_told_at_once(tmp_path: Path) -> None:
    config = {"hidden_size": 10**12, "num_hidden_layers": 10**6, "quantization_config": {"bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        shape_of(str(tmp_path))
    for name in ("model_type", "hidden_size", "num_hidden_layers", "quantization_config"):
        assert f'"{name}"' in str(caught.value)


def test_a_model_of_very_many_parts_is_refused_while_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the setting that makes it large is called."""
    monkeypatch.setattr("rankwise.forward.model_shape.MOST_MODULES", 500)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": 1_999}))
    assert "more than 500 modules" in refusal(str(tmp_path))


def measure_growth(narrow: str, wide: str, sender: Connection) -> None:
    shape_of(narrow)  # whatever is imported for it is not the model's memory
    before = psutil.Process().memory_info().rss
    sender.send((shape_of(wide).parameters, psutil.Process().memory_info().rss - before))


def test_a_very_wide_model_takes_no_memory(tmp_path: Path) -> None:
    """In a process of its own: what other tests leave behind would be counted too."""
    wide = {"hidden_size": 1_000_000, "num_hidden_layers": 20, "num_attention_heads": 10_000, "vocab_size": 10**8}
    for name, config in (("narrow", LLAMA | {"num_hidden_layers": 20}), ("wide", LLAMA | wide)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(WARM)
    receiver, sender = context.Pipe(duplex=False)
    context.Process(target=measure_growth, args=(str(tmp_path / "narrow"), str(tmp_path / "wide"), sender)).start()
    sender.close()  # so that its death ends the waiting
    parameters, growth = receiver.recv()
    assert parameters > 10**12
    assert growth < 300_000_000


def test_a_setting_that_names_code_is_not_followed(tmp_path: Path) -> None:
    code = {"auto_map": {"AutoConfig": "evil--code.Config"}, "_attn_implementation": "evil/kernel"}
    (tmp_path / "config.json").write_text(json.dumps(written_config(*SMALL["llama"]) | code))
    assert shape_of(str(tmp_path)).layers == shape_of_small("llama").layers


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelError, match=r"config\.json is not a regular file"):
        shape_of(str(tmp_path))
    os.mkfifo(tmp_path / "model.gguf")
    with pytest.raises(ModelError, match="is not a regular file"):
        shape_of(str(tmp_path / "model.gguf"))


def test_a_config_of_many_megabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(10_000_001)
    with pytest.raises(ModelError, match="too many for settings"):
        shape_of(str(tmp_path))


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000, "../..//x y", "~nobody-here/x", "a/b/c"])
def test_a_name_that_can_be_nothing_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="or a folder or file on this machine"):
        shape_of(name)


def test_a_name_that_is_nowhere_says_what_is_known() -> None:
    with pytest.raises(ModelError) as caught:
        shape_of("gpt3-175")
    assert "the hub is switched off (HF_HUB_OFFLINE)" in str(caught.value)
    assert 'Did you mean "gpt3-175b"?' in str(caught.value)


def test_a_folder_without_a_config_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a model"):
        shape_of(str(tmp_path))


def test_a_folder_and_its_config_alike(tiny_folder: Path) -> None:
    assert shape_of(str(tiny_folder)).layers == shape_of(str(tiny_folder / "config.json")).layers
    with pytest.raises(ModelError, match="is not a file that a plan can read"):
        shape_of(str(tiny_folder / "model.safetensors"))


def test_the_hub_client_s_cache_is_read_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(written_config(*SMALL["gpt2"])))
    (tmp_path / "models--org--tiny" / "refs").mkdir()
    (tmp_path / "models--org--tiny" / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert shape_of("org/tiny").layers == shape_of_small("gpt2").layers
