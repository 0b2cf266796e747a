"""A head that was trained whole beside an adapter (PEFT's modules_to_save) goes to PEFT and comes back."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig as PeftLora
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from rankwise.adapters.formats.peft import read_peft, write_peft
from rankwise.adapters.formats.peft_reader import CONFIG, WEIGHTS, read_weights
from rankwise.adapters.heads import HeadWrapper
from rankwise.adapters.set import merge
from rankwise.adapters.targets import host_view
from rankwise.config.adapters import LoraConfig
from rankwise.errors import AdapterError
from rankwise.methods.inject import inject

HEAD = "base_model.model.classifier.weight"


def classifier(seed=0):
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    return BertForSequenceClassification(config).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(24).view(2, 12)).logits


@pytest.fixture
def written(tmp_path):
    model = classifier()
    adapters = inject(model, LoraConfig(rank=3, targets="query,value"), heads=["classifier"])
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_(0, 0.2)
    write_peft(adapters, tmp_path / "adapter", base_model="tiny", task_type="SEQ_CLS")
    return tmp_path / "adapter", model


def test_peft_loads_our_head(written):
    folder, model = written
    theirs = PeftModel.from_pretrained(classifier(), folder).eval()
    assert (logits(theirs) - logits(classifier())).abs().max() > 0.01
    torch.testing.assert_close(logits(theirs), logits(model), atol=1e-5, rtol=0)


def test_we_read_our_head(written):
    folder, model = written
    head = model.classifier.copies["default"]
    for modules in (host_view(classifier()), None):
        heads = read_weights(folder, modules).heads
        assert heads.keys() == {"classifier.weight", "classifier.bias"}
        assert all(torch.equal(value, getattr(head, name.rpartition(".")[2])) for name, value in heads.items())


def test_we_read_peft_s_head(tmp_path):
    theirs = get_peft_model(classifier(), PeftLora(task_type="SEQ_CLS", target_modules=["query"], r=2))
    theirs.save_pretrained(tmp_path)
    assert set(json.loads((tmp_path / CONFIG).read_text())["modules_to_save"]) == {"classifier", "score"}
    head = theirs.base_model.model.classifier.modules_to_save["default"]
    heads = read_weights(tmp_path, host_view(classifier())).heads
    assert torch.equal(heads["classifier.weight"], head.weight) and torch.equal(heads["classifier.bias"], head.bias)


def test_a_head_is_laid_over_the_model_and_taken_out_again(written):
    folder, model = written
    again = classifier()
    before = logits(again)
    adapters = read_peft(again, folder)
    assert torch.equal(logits(again), logits(model))
    with adapters.base():
        assert torch.equal(logits(again), before)
    adapters.remove()
    assert torch.equal(logits(again), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.update({HEAD: torch.zeros(3, 32)}), r"has the shape \(3, 32\), but this model needs"),
        (lambda tensors: (tensors.pop(HEAD), tensors.pop(HEAD.replace("weight", "bias"))), 'names "classifier"'),
        (lambda tensors: tensors.update({HEAD: tensors[HEAD].long()}), "has the type I64"),
        (lambda tensors: tensors.update({HEAD: tensors[HEAD] / 0}), "NaN or infinity"),
        (lambda tensors: tensors.update({HEAD + "s": torch.zeros(1)}), "does not have"),
        (lambda tensors: tensors.update({"base_model.model.bert.pooler.dense.bias": torch.ones(32)}), "other weights"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_by_name(written, change, message):
    folder, _ = written
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(AdapterError, match=message):
        read_weights(folder, host_view(classifier()))


def test_a_merged_model_has_the_trained_head():
    # merging had taken the adapter and its heads away and given back the base's head without a word
    model = classifier()
    adapters = inject(model, LoraConfig(rank=3, targets="query,value"), heads=["classifier"])
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_(0, 0.2)
    before = logits(model)
    merged = merge(adapters)
    assert not any(isinstance(module, HeadWrapper) for module in merged.modules())
    torch.testing.assert_close(logits(merged), before, atol=1e-5, rtol=0)


def test_a_trained_head_that_shared_its_weight_is_parted_from_the_table_when_it_is_merged():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    table = model.get_input_embeddings().weight.clone()
    adapters = inject(model, LoraConfig(rank=2, targets="q_proj"), heads=["lm_head"])
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_(0, 0.2)
    before = logits(model)
    merged = merge(adapters)
    torch.testing.assert_close(logits(merged), before, atol=1e-5, rtol=0)
    assert torch.equal(merged.get_input_embeddings().weight, table), "the head alone was trained"
    assert not merged.config.tie_word_embeddings
