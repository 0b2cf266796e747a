"""A name becomes a folder that was inspected: what cannot be a model is refused by name, and its code never runs."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch

from kit.vision_models import save_folder
from rankwise.adapters.formats.peft import write_peft
from rankwise.base.inspection import fingerprint, inspect_folder
from rankwise.base.loading import load
from rankwise.base.sources import find
from rankwise.base.starters import STARTERS
from rankwise.config.adapters import LoraConfig
from rankwise.config.models import ModelConfig
from rankwise.errors import ModelError, RemoteCodeError
from rankwise.methods.inject import inject
from rankwise.runs.records import silent

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny model that may be spoiled."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def settle(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refusal(folder, kind=ModelError, **settings):
    with pytest.raises(kind) as caught:
        load(ModelConfig(name=str(folder), **settings))
    return str(caught.value)


def test_the_starters_are_known_by_name_and_each_has_the_hashes_that_check_it():
    assert "smollm2-135m" in STARTERS
    for name, starter in STARTERS.items():
        assert name == starter.name
        assert {len(hashed) for hashed in (starter.member_sha256, *(wheel.sha256 for wheel in starter.wheels))} == {64}
        assert all("==" in wheel.package for wheel in starter.wheels)


def test_a_local_folder_is_used_where_it_lies(folder):
    source = find(ModelConfig(name=str(folder)), silent)
    assert (source.folder, source.name, source.where) == (folder, str(folder), "local folder")


def test_a_folder_is_loaded_with_its_width_context_and_source(folder):
    loaded = load(ModelConfig(name=str(folder), dtype="float32"))
    assert (loaded.width, loaded.context_length) == (32, 256)
    assert loaded.facts.fingerprint == fingerprint(folder)
    assert (loaded.facts.name, loaded.facts.source, loaded.facts.dtype) == (str(folder), "local folder", "float32")
    assert not loaded.module.training


@pytest.mark.parametrize("content", [b"PK\x03\x04 not a model", b"GGU", b""])
def test_a_file_named_gguf_that_does_not_begin_with_gguf_is_refused(tmp_path, content):
    (tmp_path / "model.gguf").write_bytes(content)
    assert "is not a GGUF file" in refusal(tmp_path / "model.gguf")


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert "notes.txt is a file" in refusal(tmp_path / "notes.txt")


CANARY = "import pathlib\npathlib.Path({place!r}).write_text('ran')\n"


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_python_code_that_a_model_needs_is_named_and_never_run(folder, tmp_path, file):
    canary = tmp_path / "canary"
    (folder / "modeling_x.py").write_text(CANARY.format(place=str(canary)))
    settle(folder / "config.json", model_type="x-llama")
    settle(folder / file, auto_map={"AutoModelForCausalLM": "modeling_x.X", "AutoTokenizer": ["modeling_x.T", None]})
    said = refusal(folder, RemoteCodeError)
    assert "modeling_x.py" in said and file in said and "trust_code" in said
    assert not canary.exists() and "modeling_x" not in sys.modules


@pytest.mark.parametrize("named", [None, COMMIT, "f" * 40])
@pytest.mark.parametrize("kind", ["llama", "x-llama"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_local_folder_is_no_commit_so_no_commit_makes_its_code_run(folder, tmp_path, monkeypatch, file, kind, named):
    canary = tmp_path / "canary"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (folder / "modeling_x.py").write_text(CANARY.format(place=str(canary)))
    settle(folder / "config.json", model_type=kind)
    settle(folder / file, auto_map={"AutoModelForCausalLM": "modeling_x.X", "AutoTokenizer": ["modeling_x.T", None]})
    try:
        loaded = type(load(ModelConfig(name=str(folder), trust_code=named)).module).__name__
    except ModelError as error:
        loaded = type(error).__name__
    assert not canary.exists(), "its code ran"
    assert loaded in ({"RemoteCodeError", "LlamaForCausalLM"} if kind == "llama" else {"RemoteCodeError"})


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("value", ["someone/kernel", "flash:someone"])
def test_a_config_may_not_ask_for_attention_code_from_elsewhere(folder, key, value):
    settle(folder / "config.json", **{key: value})
    said = refusal(folder, RemoteCodeError)
    assert key in said and value in said


def test_a_config_may_not_hide_such_a_wish_in_a_part_of_itself(folder):
    settle(folder / "config.json", attn_implementation={"": "someone/kernel"})
    assert "someone/kernel" in refusal(folder, RemoteCodeError)


FROM_ELSEWHERE = [
    {"architecture": "hf-hub:someone/model"},
    {"architecture": "local-dir:/tmp/model"},
    {"model_args": {"checkpoint_path": "weights.pth"}},
    {"model_args": {"pretrained_cfg": {"file": "weights.pth"}}},
    {"parts": [{"vision": {"model_type": "timm_wrapper", "architecture": "../model"}}]},
]


@pytest.mark.parametrize("changes", FROM_ELSEWHERE)
def test_a_folder_of_timm_may_not_have_other_weights_read(tmp_path, changes):
    """timm's models take arguments that load a pickle from a path, or another model from the hub."""
    folder = save_folder("resnet", tmp_path / "resnet")
    inspect_folder(folder)
    settle(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=r"config\.json: setting"):
        inspect_folder(folder)


def test_a_plain_attention_implementation_is_allowed(folder):
    settle(folder / "config.json", _attn_implementation="eager")
    assert load(str(folder)).width == 32


def test_an_adapter_lying_in_a_models_folder_is_not_laid_over_it_unasked(folder):
    """PEFT, where it is installed, has transformers do so; neither the fingerprint nor the manifest would say it."""
    plain = load(str(folder)).module
    adapters = inject(load(str(folder)).module, LoraConfig(rank=2))
    for adapter in adapters.adapters().values():
        torch.nn.init.ones_(adapter.B)
    write_peft(adapters, folder / "adapter", base_model=str(folder))
    for file in (folder / "adapter").iterdir():
        file.rename(folder / file.name)
    try:
        module = load(str(folder)).module
    except ModelError as error:
        assert "adapter" in str(error)
        return
    assert [name for name, _ in module.named_modules()] == [name for name, _ in plain.named_modules()]


DAMAGED = {
    "half": '{"model_type": "llama", ',
    "list": "[1, 2]",
    "word": '"llama"',
    "deep": "[" * 100_000,
    "deep objects": '{"a":' * 50_000,
    "not text": "\udcff\udcfe",
    "empty": "",
}


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_json_file_of_a_model_is_refused_by_name(folder, file, content):
    (folder / file).write_bytes(content.encode(errors="surrogateescape"))
    assert str(folder / file) in refusal(folder)


def test_an_encoder_is_no_causal_language_model(folder, tmp_path):
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    assert str(folder) in refusal(folder)


LARGE = 10_000_000
PLACES = [0, 500_000, 1_500_000, LARGE // 2, 7_500_000, LARGE - 1]


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory):
    """A weight file that is much longer than what a fingerprint reads at once."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(250)) * (LARGE // 250))
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_the_fingerprint_changes_with_a_byte_wherever_it_lies(large_folder, place):
    before = fingerprint(large_folder)
    file = large_folder / "model.safetensors"
    with file.open("r+b") as opened:
        opened.seek(place)
        old = opened.read(1)
        opened.seek(place)
        opened.write(bytes([old[0] ^ 1]))
    changed = fingerprint(large_folder)
    with file.open("r+b") as opened:
        opened.seek(place)
        opened.write(old)
    assert fingerprint(large_folder) == before != changed


def test_the_fingerprint_changes_with_size_config_and_another_file(folder):
    seen = [fingerprint(folder)]
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    seen.append(fingerprint(folder))
    settle(folder / "config.json", rms_norm_eps=0.5)
    seen.append(fingerprint(folder))
    shutil.copy(folder / "model.safetensors", folder / "model-2.safetensors")
    seen.append(fingerprint(folder))
    (folder / "model-2.safetensors").rename(folder / "model-3.safetensors")
    seen.append(fingerprint(folder))
    assert len(set(seen)) == 5


def test_the_fingerprint_is_of_the_content_and_not_of_the_place(folder, tmp_path):
    assert fingerprint(shutil.copytree(folder, tmp_path / "elsewhere")) == fingerprint(folder)


def test_a_folder_is_inspected_and_read_again_once_a_file_of_it_has_changed(folder):
    (folder / "notes.txt").symlink_to("nowhere")  # as a hub's cache has where a file was removed
    spec = ModelConfig(name=str(folder))
    first = find(spec, silent)
    assert find(spec, silent) is first
    settle(folder / "config.json", rms_norm_eps=0.5)
    assert find(spec, silent).config["rms_norm_eps"] == 0.5 != first.config["rms_norm_eps"]
    settle(folder / "config.json", model_type="nobody", auto_map={"AutoModel": "code.Model"})
    with pytest.raises(RemoteCodeError):
        find(spec, silent)
