"""The hub behind our protocols: whose template is used, what ends an answer, ids that give the text back."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from kit.sampling import draws
from rankwise.base.loading import load, load_tokenizer
from rankwise.config.models import ModelConfig
from rankwise.errors import ModelError, TemplateError
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import Message
from rankwise.rows.text.tokenizer import HubTokenizer

TALK = (Message("system", "Be kind."), Message("user", "hi"), Message("assistant", "ho"))


def written(hub, *ends):
    return ChatTemplate.of_model(HubTokenizer(hub, ends))


@pytest.fixture
def plain(hub_tokenizer):
    """A tokenizer without a chat template."""
    hub = copy.deepcopy(hub_tokenizer)
    hub.chat_template = None
    return hub


def test_the_models_own_template_is_used_to_the_letter(hub_tokenizer):
    template = written(hub_tokenizer, 2)
    assert template.kind == "model"
    text = template.text(TALK)
    assert text == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n"
    )
    assert template.text(TALK[:2], answer_next=True) + "ho<|im_end|>\n" == text


def test_without_a_template_a_plain_one_is_used(plain):
    template = written(plain, plain.eos_token_id)
    assert template.kind == "plain"
    assert template.text(TALK) == "System: Be kind.\nUser: hi\nAssistant: ho<|im_end|>\n"
    assert template.text(TALK[:2], answer_next=True) == "System: Be kind.\nUser: hi\nAssistant:"


def test_the_plain_template_begins_with_the_start_token_where_the_tokenizer_adds_one(plain):
    plain.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", plain.bos_token_id)]
    )
    template = written(plain, plain.eos_token_id)
    assert template.text(TALK[1:]) == "<|im_start|>User: hi\nAssistant: ho<|im_end|>\n"
    assert template.text(TALK[1:2], answer_next=True) == "<|im_start|>User: hi\nAssistant:"
    ids = template.tokenizer.encode(template.text(TALK[1:]))
    assert ids.count(plain.bos_token_id) == 1 and ids[0] == plain.bos_token_id


def test_end_ids_are_those_of_the_tokenizer_and_of_the_generation_config(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    for given_ids, expected in ((7, (2, 7)), ([0, 2, 7], (2, 0, 7)), (2, (2,)), (None, (2,))):
        settings_file = folder / "generation_config.json"
        settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | {"eos_token_id": given_ids}))
        loaded = load(str(folder))
        assert loaded.tokenizer.end_ids == expected
        assert loaded.template.end_ids == expected
        tokenizer, name, context = load_tokenizer(ModelConfig(name=str(folder)))
        assert (tokenizer.end_ids, name, context) == (expected, loaded.source.name, loaded.context_length)


def test_end_ids_are_those_of_the_config_where_there_is_no_generation_config(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [2, 7]}))
    assert load(str(folder)).tokenizer.end_ids == (2, 7)


def test_end_ids_that_are_no_numbers_are_told(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(ModelError, match="eos_token_id"):
        load(str(folder))


def test_the_padding_token_is_the_tokenizers_or_else_an_end_token(plain):
    plain.pad_token = "<|endoftext|>"
    assert HubTokenizer(plain, [2]).pad_id == 0
    plain.pad_token = None
    assert HubTokenizer(plain, [2]).pad_id == 2
    assert HubTokenizer(plain, []).pad_id == 0


def test_a_template_that_refuses_a_conversation_is_told_with_its_reason(hub_tokenizer):
    hub = copy.deepcopy(hub_tokenizer)
    hub.chat_template = "{{ raise_exception('no system messages here') }}"
    with pytest.raises(TemplateError, match=r"system, user, assistant.*no system messages here"):
        written(hub, 2).text(TALK)


def test_a_template_cannot_reach_the_machine(hub_tokenizer):
    hub = copy.deepcopy(hub_tokenizer)
    hub.chat_template = "{{ messages.__class__.__mro__[-1].__subclasses__() }}"
    with pytest.raises(TemplateError):
        written(hub, 2).text(TALK)


@given(st.text(max_size=60))
@settings(max_examples=draws(60), deadline=None, database=None)
def test_encoding_adds_nothing_and_decoding_gives_the_text_back(hub_tokenizer, text):
    tokenizer = HubTokenizer(hub_tokenizer, [2])
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    (encoded,) = tokenizer.encode_all([text])
    assert encoded.ids == ids
    begins = [encoded.begin(index) for index in range(len(ids))]
    assert begins == sorted(begins) and all(0 <= begin < len(text) for begin in begins)
    for place in range(len(text) + 1):
        count = encoded.before(place)
        # as many ids as hold the text before, or none where an id reaches across
        assert (tokenizer.decode(ids[:count]) == text[:place]) if count is not None else place not in begins


def test_a_person_reads_an_answer_without_its_special_tokens(hub_tokenizer):
    template = written(hub_tokenizer, 2)
    ids = template.tokenizer.encode("<|im_start|>fox  dog <|im_end|>")
    assert template.answers.read(ids) == "fox  dog "
