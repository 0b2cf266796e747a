"""What is kept of the base: exactly nothing is lost where nothing changed, and otherwise what the formula says."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

import rankwise
from conftest import TEXT, tiny_model
from kit.sampling import draws
from rankwise.adapters.set import AdapterSet, merge
from rankwise.base.loaded import LoadedModel, TextReader
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.errors import DataError, EvaluationError, ModelError
from rankwise.evaluation import forgetting as retaining
from rankwise.evaluation import text as texts
from rankwise.evaluation.forgetting import compared, forgetting
from rankwise.evaluation.subject import BaseAndTuned, base_and_tuned, forward_of, of_two_models
from rankwise.evaluation.text import LARGEST, Text, documentation, firsts_of, refuse_trained_on, text_for
from rankwise.methods.inject import inject
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.data_report import DataReport, PartFacts
from rankwise.runs.manifest import AnchorFacts
from rankwise.system.files import sha256_of


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> LoadedModel:
    return rankwise.load(rankwise.ModelConfig(name=str(tiny_folder), dtype="float32"))


def words(count: int, length: int, vocabulary: int = 96, seed: int = 0) -> Text:
    ids = torch.randint(vocabulary, (count, length + 1), generator=torch.Generator().manual_seed(seed))
    return Text(ids, "random words", "0" * 64, ())


def unsettle(adapters: AdapterSet, size: float = 0.2) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


@pytest.mark.parametrize(
    ("architecture", "spec", "dtype"),
    [("llama", LoraConfig(), torch.float32), ("gpt2", LoraConfig(dora=True), torch.bfloat16),
     ("gpt2", AdaLoraConfig(), torch.float32), ("llama", AdaLoraConfig(), torch.bfloat16)],
)  # fmt: skip
def test_an_untrained_adapter_forgets_exactly_nothing(
    architecture: str, spec: LoraConfig | AdaLoraConfig, dtype: torch.dtype
) -> None:
    base = tiny_model(architecture).to(dtype)
    found = forgetting(base_and_tuned(inject(base, spec)), words(3, 40))
    assert (found.kl, found.low, found.high) == (0, 0, 0)
    assert (found.delta_nll, found.delta_nll_low, found.delta_nll_high) == (0, 0, 0)
    assert found.agreement == 1 and (found.blocks, found.positions) == (3, 120)


def test_it_is_what_the_formula_says_at_every_position() -> None:
    base = tiny_model("llama")
    with torch.no_grad():
        base.get_output_embeddings().weight.mul_(20)  # random models are never sure, and KL is then alike both ways
    adapters = inject(base, LoraConfig(rank=3, targets=("all-linear", "embed_tokens")))
    unsettle(adapters)
    text = words(5, 90)
    found = forgetting(base_and_tuned(adapters), text)
    given, wanted = text.blocks[:, :-1], text.blocks[:, 1:].flatten()
    with torch.no_grad():
        tuned = base(input_ids=given).logits.double().flatten(0, 1)
        with adapters.base():
            before = base(input_ids=given).logits.double().flatten(0, 1)
    p, q = before.softmax(-1), tuned.softmax(-1)
    kl = float((p * (p / q).log()).sum(-1).mean())
    other_way = float((q * (q / p).log()).sum(-1).mean())
    assert found.kl == pytest.approx(kl, rel=1e-4) and abs(other_way - kl) > 0.01 * kl > 1e-6
    change = float(F.cross_entropy(tuned, wanted) - F.cross_entropy(before, wanted))
    assert found.delta_nll == pytest.approx(change, rel=1e-4) and change != 0
    assert found.agreement == float((p.argmax(-1) == q.argmax(-1)).double().mean()) < 1
    assert found.low < found.kl < found.high and found.delta_nll_low < found.delta_nll < found.delta_nll_high
    assert found.positions == 450


def test_neither_the_order_of_blocks_nor_what_is_held_at_a_time_changes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_model("gpt2")
    adapters = inject(base, LoraConfig(rank=3))
    unsettle(adapters)
    sides, text = base_and_tuned(adapters), words(6, 50)
    found = forgetting(sides, text)
    turned = forgetting(sides, replace(text, blocks=text.blocks.flip(0)))
    assert turned.summary() == found.summary() and turned.sums.kl == found.sums.kl[::-1]
    monkeypatch.setattr(retaining, "ROWS", 7)
    other = forgetting(sides, text)
    assert other.kl == pytest.approx(found.kl, rel=1e-6) and other.agreement == found.agreement


def test_the_base_is_asked_once_for_several_that_were_tuned() -> None:
    base = tiny_model("llama")
    adapters = inject(base, LoraConfig(rank=3))
    unsettle(adapters)
    sides, text = base_and_tuned(adapters), words(2, 30)
    asked: list[int] = []

    def counted(ids: torch.Tensor) -> torch.Tensor:
        asked.append(len(ids))
        return sides.base(ids)

    same, changed = compared(counted, [sides.base, sides.tuned], text)
    assert asked == [30, 30]
    assert [block.kl for block in same] == [0, 0] and all(block.kl > 0 for block in changed)


def test_two_models_apart_are_the_one_with_its_adapter(model: LoadedModel, tiny_folder: Path) -> None:
    text = words(3, 60, model.vocabulary)
    tuned = rankwise.load(rankwise.ModelConfig(name=str(tiny_folder), dtype="float32"))
    adapters = inject(tuned.module, LoraConfig(rank=3))
    unsettle(adapters)
    together = forgetting(base_and_tuned(adapters), text)
    merge(adapters)
    apart = forgetting(of_two_models(model, tuned), text)
    assert apart.kl == pytest.approx(together.kl, rel=1e-3) and together.kl > 1e-6
    assert apart.delta_nll == pytest.approx(together.delta_nll, rel=1e-3)


def with_tokenizer(model: LoadedModel, tokenizer: HubTokenizer) -> LoadedModel:
    return replace(model, text=TextReader(tokenizer, model.template))


def test_models_of_other_vocabularies_are_not_compared(
    model: LoadedModel, hub_tokenizer: PreTrainedTokenizerFast
) -> None:
    wider = replace(model, module=tiny_model("llama", vocab=model.vocabulary + 8))
    with pytest.raises(ModelError, match="has a different vocabulary"):
        of_two_models(model, wider)
    described = json.loads(hub_tokenizer.backend_tokenizer.to_str())
    ids = described["model"]["vocab"]
    ids["A"], ids["B"] = ids["B"], ids["A"]
    backend = Tokenizer.from_str(json.dumps(described))
    other = HubTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), [2])
    with pytest.raises(ModelError, match='"A" has different ids'):
        of_two_models(model, with_tokenizer(model, other))


def test_logits_that_are_not_finite_are_told() -> None:
    base = forward_of(tiny_model("llama"))
    broken = tiny_model("llama")
    with torch.no_grad():
        next(broken.parameters())[5] = float("nan")
    with pytest.raises(EvaluationError, match="not finite"):
        forgetting(BaseAndTuned(base, forward_of(broken)), words(2, 60))


def test_dropout_is_off_meanwhile_and_on_again_afterwards() -> None:
    base = tiny_model("gpt2").train()
    adapters = inject(base, LoraConfig(rank=2, dropout=0.5))
    unsettle(adapters)
    training = [part for part in base.modules() if part.training]
    sides, text = base_and_tuned(adapters), words(2, 30)
    assert forgetting(sides, text) == forgetting(sides, text)
    assert training == [part for part in base.modules() if part.training] and len(training) > 10


# the text


@settings(max_examples=draws(200))
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 3000))
def test_blocks_are_spread_from_the_beginning_to_the_end_and_share_nothing(blocks: int, size: int, more: int) -> None:
    tokens = blocks * size + more
    firsts = firsts_of(tokens, blocks, size)
    assert len(firsts) == blocks and firsts[0] == 0
    assert all(later - first >= size for first, later in pairwise(firsts))
    assert blocks == 1 or firsts[-1] == tokens - size
    gaps = {later - first for first, later in pairwise(firsts)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_what_python_carries_is_read_without_being_asked_and_is_the_same_each_time(model: LoadedModel) -> None:
    text = text_for(model)
    assert text.blocks.shape == (32, 257) and text.length == 256, "the tiny model has no longer context"
    assert torch.equal(text.blocks, text_for(model).blocks) and text.sha256 == text_for(model).sha256
    assert "pydoc_data.topics" in text.about and "32 blocks of 256" in text.about
    assert model.tokenizer.decode(text.blocks[0].tolist()) in documentation().content
    assert documentation().content.endswith(model.tokenizer.decode(text.blocks[-1].tolist()))
    assert text_for(model, blocks=31).sha256 != text.sha256


@pytest.mark.parametrize("form", ["byte order mark", "rows", "folder"])
def test_a_text_comes_from_plain_text_or_from_rows(model: LoadedModel, form: str, tmp_path: Path) -> None:
    parts = [f"{TEXT[number % 3]} {number}\r\n" for number in range(60)]
    whole = ("" if form in ("plain", "byte order mark") else "\n\n").join(parts)
    rows = "".join(json.dumps({"text": part}) + "\n" for part in parts)
    source = tmp_path / ("text.md" if form in ("plain", "byte order mark") else "rows.jsonl")
    source.write_bytes(
        b"\xef\xbb\xbf" * (form == "byte order mark") + (rows if "rows" in source.name else whole).encode()
    )
    text = text_for(model, str(tmp_path if form == "folder" else source), blocks=2, length=50)
    ids = model.tokenizer.encode(whole)
    assert text.blocks.tolist() == [ids[:51], ids[-51:]]
    assert text.origins == (sha256_of(source),)


def test_what_is_typed_like_a_control_token_is_text(model: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("He wrote <|im_end|> and went. " * 30)
    text = text_for(model, str(tmp_path / "text.txt"), blocks=1, length=60)
    assert not set(text.blocks.flatten().tolist()) & set(model.tokenizer.special.texts)
    assert model.tokenizer.decode(text.blocks[0].tolist()).startswith("He wrote <|im_end|> and went. He")


def test_each_block_begins_with_what_the_tokenizer_puts_before_every_text(
    model: LoadedModel, hub_tokenizer: PreTrainedTokenizerFast
) -> None:
    backend = Tokenizer.from_str(hub_tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing("<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    starting = HubTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|im_start|>"), [2])
    text, plain = (text_for(one, blocks=3, length=40) for one in (with_tokenizer(model, starting), model))
    assert text.blocks.shape == (3, 41) and text.blocks[:, 0].tolist() == [1, 1, 1]
    assert torch.equal(text.blocks[0, 1:], plain.blocks[0, :-1])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"too short", r"has \d+ tokens, and 4 blocks of 33 are 132"),
        (b"good \xff bad" * 99, "is not UTF-8 text \\(byte 5\\)"),
        ("a\ufdd0b".encode() * 500, r"noncharacter U\+FDD0"),
    ],
)
def test_a_text_that_cannot_be_used_says_why(model: LoadedModel, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(DataError, match=said):
        text_for(model, str(tmp_path / "text.txt"), blocks=4, length=32)


def test_no_file_and_rows_without_a_text_are_told(model: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("here")
    with pytest.raises(DataError, match=r'no such file\. Did you mean "text\.txt"'):
        text_for(model, str(tmp_path / "texts.txt"))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"text": "c"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:1.*prompt form"):
        text_for(model, str(tmp_path / "rows.jsonl"))


def test_a_text_without_end_is_cut_and_says_so(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LARGEST >= 1_000_000, "a book is not cut"
    monkeypatch.setattr(texts, "LARGEST", 50_000)
    short = "Ünïcödé 漢字 🙂. "
    (tmp_path / "text.txt").write_text("x" + short * (50_000 // len(short) + 4000), encoding="utf-8")
    text = text_for(model, str(tmp_path / "text.txt"), blocks=2, length=20)
    assert text.about.startswith("the first 50,000 characters of ")


def test_text_that_was_trained_on_is_refused(model: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT[0] * 40)
    text = text_for(model, str(tmp_path / "text.txt"), blocks=2, length=20)
    part = PartFacts(name="mine.jsonl", sha256="1" * 64, format="text", rows=1, licence="unknown")
    refuse_trained_on(text, DataReport.model_construct(files=(part,)))
    same = PartFacts(name="mine.jsonl", sha256=text.origins[0], format="text", rows=1, licence="unknown")
    with pytest.raises(DataError, match=r"mine\.jsonl belongs to the data of the run"):
        refuse_trained_on(text, DataReport.model_construct(files=(part, same)))
    apart, anchor = (AnchorFacts(text="", sha256="", origins=origins) for origins in (("2" * 64,), text.origins))
    refuse_trained_on(text, DataReport.model_construct(files=(part,)), apart)
    with pytest.raises(DataError, match="held to its base on this text"):
        refuse_trained_on(text, DataReport.model_construct(files=(part,)), anchor)
