"""Every damaged GGUF file is refused by one typed error, read as it lies or converted, before memory is taken."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

from kit.damaged_gguf import DAMAGES, SAID, TEMPLATES, VOCABULARY, Damage
from kit.gguf_models import adapter_in, model_in
from rankwise.base.gguf import header as headers
from rankwise.base.gguf.conversion import converted
from rankwise.base.gguf.folder import FileBase
from rankwise.base.gguf.header import read_gguf_header
from rankwise.base.gguf.mapped import gguf_folder, gguf_tensors
from rankwise.cli.main import app
from rankwise.errors import ModelError, RankwiseError, TemplateError
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import Message
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.records import silent

MOST_BYTES = 32 << 20
"""That a refusal may leave behind: a thousandth of what the lies announce."""


def as_it_lies(file: Path) -> Path:
    folder = gguf_folder(file, silent)
    assert folder is not None
    gguf_tensors(file, folder, torch.bfloat16)
    return folder


def as_converted(file: Path) -> Path:
    return converted(file, silent)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    base = model_in(folder / "base", "llama")
    adapter = adapter_in(folder / "zero", base, ["q_proj"], size=0.0)
    words = ["export", adapter, "--to", folder / "sound.gguf", "--format", "gguf", "--dtype", "q8_0"]
    assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0
    return folder / "sound.gguf"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("read", [as_it_lies, as_converted])
def test_the_sound_file_is_read(sound: Path, cache: Path, read: Callable[[Path], Path]) -> None:
    assert (read(sound) / "config.json").is_file()


def test_a_setting_that_is_too_large_to_be_read_is_not_left_out_of_a_copy(
    sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = FileBase(sound).fields()["tokenizer.chat_template"].value
    monkeypatch.setattr(headers, "LONGEST_TEMPLATE", len(template) - 1)
    with pytest.raises(ModelError, match=r"the setting tokenizer\.chat_template is too large to be copied"):
        FileBase(sound).fields()


def test_there_are_sixty_different_files(sound: Path) -> None:
    content, header = sound.read_bytes(), read_gguf_header(sound)
    made = {damage(content, header) for damage in DAMAGES.values()}
    assert len(DAMAGES) == len(made) == 60 and content not in made


@pytest.mark.timeout(60)
@pytest.mark.parametrize("read", [as_it_lies, as_converted])
@pytest.mark.parametrize("name", [name for name in DAMAGES if name not in TEMPLATES])
def test_a_damaged_file_is_refused(
    sound: Path, cache: Path, tmp_path: Path, name: str, read: Callable[[Path], Path]
) -> None:
    file = written(DAMAGES[name], sound, tmp_path)
    gc.collect()
    before = psutil.Process().memory_info().rss
    with pytest.raises(RankwiseError) as caught:
        read(file)
    assert psutil.Process().memory_info().rss - before < MOST_BYTES
    assert str(file) in str(caught.value) and len(str(caught.value).splitlines()) <= 6
    assert SAID.get(name, "") in str(caught.value)
    assert not cache.exists()


@pytest.mark.parametrize(("key", "damage"), VOCABULARY)
def test_a_setting_of_the_tokenizer_that_no_reader_can_use_is_named(
    sound: Path, cache: Path, tmp_path: Path, key: str, damage: Damage
) -> None:
    file = written(damage, sound, tmp_path)
    for read in (as_it_lies, as_converted):
        with pytest.raises(ModelError) as caught:
            read(file)
        _, line = str(caught.value).splitlines()
        assert str(file) in str(caught.value) and line.startswith(f'  setting "{key}" is ')
    assert not cache.exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("read", [as_it_lies, as_converted])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_hostile_template_is_refused_at_the_first_conversation(
    sound: Path, cache: Path, tmp_path: Path, name: str, read: Callable[[Path], Path]
) -> None:
    folder = read(written(DAMAGES[name], sound, tmp_path))
    tokenizer = HubTokenizer(AutoTokenizer.from_pretrained(folder), [])
    with pytest.raises(TemplateError) as caught:
        ChatTemplate.of_model(tokenizer).text([Message("user", "Hello")])
    assert "\n" not in str(caught.value)


def written(damage: Damage, sound: Path, folder: Path) -> Path:
    file = folder / "damaged.gguf"
    file.write_bytes(damage(sound.read_bytes(), read_gguf_header(sound)))
    return file
