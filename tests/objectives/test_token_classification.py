"""Token classification: loss and gradients are transformers' own, and the first token of each word has its tag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kit.tagged import spanned, tagger_folder
from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.objectives.objective import Facts, Objective
from rankwise.objectives.registry import objective_named
from rankwise.objectives.tagging import TagEncoder, encode_words
from rankwise.rows.encoded.batches import IGNORED, Batch
from rankwise.rows.forms.formats import parse_row
from rankwise.rows.text.example import words_of
from rankwise.rows.text.outcome import Outcome
from rankwise.runs.records import silent
from rankwise.runs.row_facts import TargetFacts

TAGS = TargetFacts(classes=("O", "B-LOC", "I-LOC", "B-PER", "I-PER"), counts=(1,) * 5, form="tags")
WEIGHTED = TAGS.model_copy(update={"weights": (0.5, 1.0, 3.0, 1.0, 2.0)})
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BASES = {
    "roberta": (transformers.RobertaConfig(**SMALL, vocab_size=64, max_position_embeddings=70, pad_token_id=0),
                transformers.RobertaForMaskedLM),
    "deberta-v2": (transformers.DebertaV2Config(**SMALL, vocab_size=64, max_position_embeddings=64, pad_token_id=0),
                   transformers.DebertaV2ForMaskedLM),
    "llama": (transformers.LlamaConfig(**SMALL, vocab_size=64, num_key_value_heads=4, pad_token_id=0),
              transformers.LlamaForCausalLM),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tagger_folder(tmp_path_factory.mktemp("models") / "tiny-tagger")


def base(folder: Path, kind: str) -> Path:
    """The tokenizer of the tiny encoder beside a random model of another kind."""
    if kind == "bert":
        return folder
    other = folder.parent / kind
    if not other.exists():
        torch.manual_seed(0)
        config, model = BASES[kind]
        model(config).save_pretrained(other)
        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(other)
    return other


def loaded(folder: Path, targets: TargetFacts = TAGS) -> tuple[Objective, LoadedModel]:
    objective = objective_named("token-classification", Facts(targets))
    return objective, load(ModelConfig(name=str(folder), dtype="float32"), silent, objective.kind)


def outcomes(model: LoadedModel, rows: list[dict[str, Any]], limit: int = 64, **settings: Any) -> list[Outcome]:
    examples = [parse_row(row, "spans", f"rows:{at + 1}")[0] for at, row in enumerate(rows)]
    return TagEncoder(model.tokenizer, DataConfig(path="rows", **settings), limit, TAGS).encode(examples)


def batches(objective: Objective, model: LoadedModel, tokens: int) -> list[Batch]:
    return objective.loss.batches([row for one in outcomes(model, spanned(6)) for row in one.sequences], tokens)


@pytest.mark.parametrize("kind", ["bert", *BASES])
def test_loss_and_gradients_are_those_of_transformers(folder, kind):
    objective, model = loaded(base(folder, kind))
    (batch,) = batches(objective, model, 10_000)
    module: Any = model.module.eval().requires_grad_(True)
    (objective.loss(module, batch) / batch.count).backward()
    ours = {name: one.grad.clone() for name, one in module.named_parameters() if one.grad is not None}
    module.zero_grad()
    pad = batch.inputs["attention_mask"] == 0
    inputs = {**batch.inputs, "input_ids": batch.input_ids.masked_fill(pad, module.config.pad_token_id)}
    if kind == "llama":
        del inputs["token_type_ids"]
    theirs = module(**inputs, labels=batch.targets).loss
    theirs.backward()
    assert (objective.loss(module, batch) / batch.count).item() == pytest.approx(theirs.item(), rel=1e-6)
    own = {name: one.grad for name, one in module.named_parameters() if one.grad is not None}
    assert ours.keys() == own.keys()
    largest = max(grad.abs().max() for grad in own.values())
    assert all((ours[name] - grad).abs().max() <= 1e-6 * largest for name, grad in own.items())


@pytest.mark.parametrize("targets", [TAGS, WEIGHTED], ids=["plain", "weighted"])
def test_how_rows_are_cut_into_batches_changes_no_loss(folder, targets):
    objective, model = loaded(folder, targets)
    sums = []
    for tokens in (10_000, 20, 1):
        with torch.no_grad():
            parts = [(objective.loss(model.module, one).item(), one.count) for one in batches(objective, model, tokens)]
        sums.append((sum(loss for loss, _ in parts), sum(count for _, count in parts)))
    assert all(one == pytest.approx(sums[0], rel=1e-6) for one in sums)


def test_only_the_first_token_of_a_word_is_learned(folder):
    objective, model = loaded(folder)
    (outcome,) = outcomes(model, [spanned(2)[1]])  # "Boris Novak works in Oslo for a while."
    (row,) = outcome.sequences
    tokens = [model.tokenizer.decode([token]) for token in row.ids]
    learned = {at: TAGS.classes[tag] for at, tag in enumerate(row.tags) if row.loss_mask[at]}
    assert tokens[1:5] == ["bor", "##is", "nov", "##ak"] and tokens[0] == "[CLS]"
    assert {at: learned.get(at) for at in range(5)} == {0: None, 1: "B-PER", 2: None, 3: "I-PER", 4: None}
    (batch,) = objective.loss.batches([row], 100)
    assert (batch.targets != IGNORED).sum() == batch.count == len(words_of(spanned(2)[1]["text"])) == row.loss_count


def test_a_cut_text_says_how_many_words_it_lost(folder):
    _, model = loaded(folder)
    row = {"text": "Anna works in Oslo for a while", "spans": []}
    (whole,) = outcomes(model, [row], too_long="truncate")
    (cut,) = outcomes(model, [row], limit=8, too_long="truncate")
    (dropped,) = outcomes(model, [row], limit=8)
    assert (whole.cut_words, cut.cut_words, cut.unlearned_words) == (0, 3, 0)  # [CLS] an ##na work ##s in os [SEP]
    assert cut.truncated == 1 and cut.sequences[0].loss_count + cut.cut_words == len(words_of(row["text"]))
    assert dropped.too_long == 1 and not dropped.sequences


def test_words_that_share_a_token_are_learned_once(folder):
    _, model = loaded(folder)
    text = "works"
    (encoded,) = encode_words(model.tokenizer, [(text, ((0, 2), (2, 3), (3, 5)))])
    assert encoded.words == (0,) and sum(encoded.tokens.loss_mask) == 1
