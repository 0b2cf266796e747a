"""New tokens: only their rows are trained and stored, and they come back with the same ids and logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

import rankwise
from kit.decoder_families import DECODERS, save_decoder
from kit.interrupted import whole_and_resumed
from rankwise.adapters.formats.dialects import read_adapter
from rankwise.adapters.formats.peft import WEIGHTS
from rankwise.adapters.token_rows import TokenRows
from rankwise.cli.main import app
from rankwise.config.experiment import Planned
from rankwise.errors import RankwiseError
from rankwise.exporting.engine_rules import verdicts as verdicts_of
from rankwise.exporting.merging.as_adapter import combine
from rankwise.exporting.merging.inputs import Options
from rankwise.methods.artifact import open_artifact
from rankwise.runs.records import Callback, StatusMessage, silent

NEW = ("<city>", "<date>", "<price>")
ROWS = [
    {"prompt": f"Where is {n}?", "completion": "It is in <city>, since <date>. <city> it is."} for n in range(8)
]  # fmt: skip


def trained(folder: Path, name: str = "tokens", callback: Callback = silent, **settings: object) -> rankwise.Run:
    (Path("rows.jsonl")).write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    training = rankwise.TrainingConfig(steps=5, batch_size=len(ROWS), learning_rate=0.02, schedule="constant")
    model = {"name": str(folder), "dtype": "float32", "new_tokens": NEW} | settings
    experiment = rankwise.Experiment(
        model=model, data="rows.jsonl", adapter=rankwise.LoraConfig(rank=4), training=training, run=name
    )  # fmt: skip
    return rankwise.train(experiment, callback=callback)


def logits(model: nn.Module, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("name", ["qwen2", "gptj", "gemma3", "opt"])
def test_only_their_rows_are_trained_and_come_back_everywhere(
    name: str, hub_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save_decoder(name, hub_tokenizer, tmp_path / "model")
    tied = DECODERS[name].settings.get("tie_word_embeddings", name == "gpt2")
    size = len(hub_tokenizer)
    plain, run = trained(folder, "plain", new_tokens=()), trained(folder)
    tokenizer = run.model.tokenizer
    assert [tokenizer.encode(token) for token in NEW] == [[size], [size + 1], [size + 2]]
    ids = tokenizer.encode("It is in <city>, since <date> for <price>.")
    assert {size, size + 1, size + 2} <= set(ids)

    tensors = [load_file(one.folder / "adapter" / WEIGHTS) for one in (plain, run)]
    more = {key: tuple(tensors[1][key].shape) for key in tensors[1].keys() - tensors[0].keys()}
    assert set(more.values()) == {(3, 32)} and len(more) == (1 if tied else 2)
    sizes = [(one.folder / "adapter" / WEIGHTS).stat().st_size for one in (plain, run)]
    assert sizes[1] - sizes[0] <= len(more) * (3 * 32 * 4 + 200), "the file grows by their rows alone"
    counts = [one.results["trainable_parameters"] for one in (plain, run)]
    assert counts[1] - counts[0] == len(more) * 3 * 32

    adapted = logits(run.model.module, ids)
    again = rankwise.load_run("tokens")
    assert again.model.tokenizer.encode("<city> <date> <price>") == tokenizer.encode("<city> <date> <price>")
    assert torch.equal(logits(again.model.module, ids), adapted), "reloaded"
    with again.trainable.base():
        base = logits(again.model.module, ids)
    assert apart(base, adapted) > 0.01
    start = rankwise.load(rankwise.ModelConfig(name=str(folder), dtype="float32", new_tokens=NEW)).module
    assert torch.equal(logits(start, ids), base), "switched off, it is the base with the rows that they began with"
    tables = _tables(start)[: len(more)]
    for key, table in zip(sorted(more, key=lambda key: "lm_head" in key or "embed_out" in key), tables, strict=True):
        assert (tensors[1][key] - table[size:])[:2].abs().min() > 1e-4, f"{key} learned the tokens of the answers"
    old = [token for token in ids if token < size]
    first = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert torch.equal(logits(start, old)[..., :size], logits(first, old)), "and the base itself for its own tokens"

    if name != "gptj":  # PEFT 0.21 leaves out the bias of a head with trained rows, and the run says so
        first.resize_token_embeddings(size + 3, mean_resizing=False)
        theirs = PeftModel.from_pretrained(first, run.folder / "adapter").eval()
        assert apart(logits(theirs, ids), adapted) <= 1e-5, "PEFT"
        assert (
            apart(logits(AutoPeftModelForCausalLM.from_pretrained(run.folder / "adapter").eval(), ids), adapted) <= 1e-5
        )
    there = AutoTokenizer.from_pretrained(run.folder / "adapter")
    assert there("It is in <city>, since <date> for <price>.", add_special_tokens=False)["input_ids"] == ids
    rankwise.export("tokens", to="peft")
    exported = open_artifact("peft").base.model_copy(update={"dtype": "float32"})
    assert exported.new_tokens == NEW, "from the tokenizer in the folder"
    apart_from_run = rankwise.load_tuned("peft", spec=exported)
    assert apart_from_run.model.tokenizer.new.ids == tokenizer.new.ids
    assert torch.equal(logits(apart_from_run.model.module, ids), adapted), "exported"

    rankwise.export("tokens", to="merged", format="merged")
    merged = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float32).eval()
    assert merged.config.vocab_size == size + 3
    assert apart(logits(merged, ids), adapted) <= 1e-5, "merged"
    assert AutoTokenizer.from_pretrained("merged").convert_tokens_to_ids(list(NEW)) == [size, size + 1, size + 2]


@pytest.fixture
def llama(hub_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return save_decoder("llama", hub_tokenizer, tmp_path / "model")


def test_they_begin_as_the_mean_of_their_pieces_and_spare_rows_come_first(
    hub_tokenizer: PreTrainedTokenizerFast, llama: Path
) -> None:
    size = len(hub_tokenizer)
    padded = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    padded.resize_token_embeddings(size + 2, mean_resizing=False)
    padded.save_pretrained(llama)
    plain = rankwise.load(rankwise.ModelConfig(name=str(llama), dtype="float32"))
    loaded = rankwise.load(rankwise.ModelConfig(name=str(llama), dtype="float32", new_tokens=NEW))
    assert dict(loaded.tokenizer.new.ids) == {token: size + number for number, token in enumerate(NEW)}
    assert loaded.vocabulary == size + 3, "two rows were spare"
    for one, other in zip(*(_tables(model.module) for model in (plain, loaded)), strict=True):
        assert torch.equal(one[:size], other[:size])
        for number, token in enumerate(NEW):
            pieces = plain.tokenizer.encode(token)
            assert len(pieces) > 1 and torch.allclose(other[size + number], one[pieces].mean(0), atol=1e-6)
    again = rankwise.load(rankwise.ModelConfig(name=str(llama), dtype="float32", new_tokens=NEW))
    assert all(torch.equal(*pair) for pair in zip(_tables(again.module), _tables(loaded.module), strict=True))


def _tables(model: nn.Module) -> list[Tensor]:
    return [model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()]


def test_a_run_says_how_often_they_occur_and_which_were_tokens_already(llama: Path) -> None:
    events: list[object] = []
    run = trained(llama, callback=events.append, new_tokens=(*NEW, "<|im_start|>"))
    facts = run.snapshot.recorded_data.new_tokens
    assert facts.counts == {"<city>": 2 * len(ROWS), "<date>": len(ROWS), "<price>": 0}
    assert facts.existing == ("<|im_start|>",)
    warnings = " ".join(run.manifest.warnings)
    assert "the new token '<price>' never occurs in the training rows" in warnings
    assert "'<|im_start|>' is a token of this model already (model.new_tokens)" in warnings
    assert run.model.tokenizer.hub.convert_tokens_to_ids("<|im_start|>") < run.model.tokenizer.new.ids["<city>"]
    sentences = " ".join(event.text for event in events if isinstance(event, StatusMessage))
    assert "new tokens: '<city>' 16 times, '<date>' 8 times, '<price>' 0 times in the training rows" in sentences


def test_a_plan_counts_their_rows(llama: Path) -> None:
    settings = {"adapter": {"rank": 4}, "data": None}
    plain, more = (
        rankwise.plan(Planned(model={"name": str(llama), "new_tokens": tokens}, **settings)).forecast
        for tokens in ((), NEW)
    )
    run = trained(llama)
    assert more.parameters.trainable - plain.parameters.trainable == 2 * 3 * 32
    assert more.parameters.trainable == run.results["trainable_parameters"]
    assert more.parameters.file_bytes == pytest.approx(run.results["adapter_bytes"], abs=64)


def test_formats_without_a_place_for_them_are_refused_by_name(llama: Path) -> None:
    trained(llama)
    for format in ("portable", "mlx", "gguf-lora", "gguf"):
        with pytest.raises(RankwiseError, match=r"trained rows of 3 new tokens .*merged") as caught:
            rankwise.export("tokens", to=f"out-{format}", format=format)
        assert not Path(f"out-{format}").exists(), str(caught.value)
    with pytest.raises(RankwiseError, match="strength 1"):
        rankwise.export("tokens", to="half", strength=0.5)
    with pytest.raises(RankwiseError, match=r"trained rows of new tokens .*--format merged"):
        rankwise.merge("tokens", to="out")
    with pytest.raises(RankwiseError, match=r"trained rows of new tokens .*--format merged"):
        combine(Options(["tokens", "tokens"]), Path("out"), silent)
    weights = read_adapter(Path("runs/tokens/adapter"))
    verdicts = verdicts_of(weights)
    assert verdicts["PEFT"] is None and "rows of new tokens" in verdicts["vLLM"]


def test_their_change_is_scaled_and_taken_out_like_any_other(llama: Path) -> None:
    run = trained(llama)
    ids = run.model.tokenizer.encode("It is in <city> for <price>.")
    model, adapters = run.model.module, run.trainable.adapters
    whole = logits(model, ids)
    with adapters.base():
        base = logits(model, ids)
    with adapters.scaled(0.0):
        assert apart(logits(model, ids), base) <= 1e-6
    with adapters.scaled(0.5):
        half = logits(model, ids)
    assert apart(half, whole) > 1e-3 and apart(half, base) > 1e-3
    assert torch.equal(logits(model, ids), whole)
    with pytest.raises(RankwiseError, match=r'trained in "model.embed_tokens", so it gets no adapter'):
        rankwise.add_adapter(adapters, rankwise.LoraConfig(targets=("embed_tokens",)), "second")
    assert torch.equal(logits(adapters.remove(), ids), base)
    assert not any(isinstance(part, TokenRows) for part in model.modules())


DAMAGED = {
    "fewer tokens": ({"model.embed_tokens": [372], "lm_head": [372, 373, 374]}, "names 1 tokens for it"),
    "one twice": ({"model.embed_tokens": [372, 372, 374], "lm_head": [372, 373, 374]}, "names 2 tokens for it"),
    "no tokens": ({}, "names 0 tokens for it"),
    "another table": ({"other": [372, 373, 374], "lm_head": [372, 373, 374]}, "names 0 tokens for it"),
    "a token that is not there": ([372, 373, 9999], "has a row for token 9999, but this model has 375 tokens"),
    "no number": ({"lm_head": ["372"]}, "trainable_token_indices"),
    "below zero": ([-1, 373, 374], "trainable_token_indices"),
}


def test_damaged_rows_are_refused_by_name(llama: Path) -> None:
    run = trained(llama)
    spec = rankwise.ModelConfig(name=str(llama), dtype="float32", new_tokens=NEW)
    assert sorted(run.model.tokenizer.new.ids.values()) == [372, 373, 374]
    copy = Path("copy")
    shutil.copytree(run.folder / "adapter", copy)
    settings = json.loads((copy / "adapter_config.json").read_text())
    module = rankwise.load(spec).module
    for indices, said in DAMAGED.values():
        (copy / "adapter_config.json").write_text(json.dumps(settings | {"trainable_token_indices": indices}))
        with pytest.raises(RankwiseError, match=said):
            rankwise.read_peft(module, copy)
    factors = {key: value for key, value in load_file(copy / WEIGHTS).items() if "token_adapter" not in key}
    save_file(factors, copy / WEIGHTS)
    (copy / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(RankwiseError, match="names tokens, but the file has no rows for them"):
        rankwise.read_peft(module, copy)


def test_a_run_goes_on_as_if_never_stopped(llama: Path) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def experiment(run: str) -> rankwise.Experiment:
        return rankwise.Experiment(
            model={"name": str(llama), "dtype": "float32", "new_tokens": NEW}, data="rows.jsonl", run=run,
            adapter=rankwise.AdaLora(budget=4, warmup=0.2, final=0.2),
            training={"steps": 4, "batch_size": 4, "learning_rate": 0.02, "checkpoint_steps": 2},
        )  # fmt: skip

    whole, resumed = whole_and_resumed(experiment, 3)
    assert whole == resumed


def test_another_round_goes_on_with_their_rows_and_full_fine_tuning_trains_all(llama: Path) -> None:
    first = trained(llama)
    training = rankwise.TrainingConfig(steps=1, batch_size=8, learning_rate=1e-9)
    model = {"name": str(llama), "dtype": "float32", "new_tokens": NEW}
    again = {"data": "rows.jsonl", "training": training, "adapter": {"start_from": "tokens"}}
    second = rankwise.train(rankwise.Experiment(model=model, run="second", **again), callback=silent)
    ids = first.model.tokenizer.encode("It is in <city> for <price>.")
    assert apart(logits(second.model.module, ids), logits(first.model.module, ids)) <= 1e-5
    with pytest.raises(RankwiseError, match=r"has 374 tokens; load it with the same model.new_tokens"):
        rankwise.train(
            rankwise.Experiment(model=model | {"new_tokens": NEW[:2]}, run="third", **again), callback=silent
        )
    full = again | {"adapter": {"method": "full"}, "training": training.model_copy(update={"learning_rate": 1e-3})}
    whole = rankwise.train(rankwise.Experiment(model=model, run="full", **full), callback=silent)
    live = logits(whole.model.module, ids)
    loaded = rankwise.load_run("full")
    assert loaded.model.tokenizer.encode("It is in <city> for <price>.") == ids
    assert torch.equal(logits(loaded.model.module, ids), live)
    with loaded.trainable.base():
        assert apart(logits(loaded.model.module, ids), live) > 1e-3


def test_the_command_line_takes_them_and_wrong_ones_are_refused(llama: Path) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["train", "--model", str(llama), "--data", "rows.jsonl", "--run", "words", "--steps", "1"]
    result = CliRunner().invoke(app, [*words, "--new-tokens", "<city>,<date>"])
    assert result.exit_code == 0, result.output
    assert rankwise.load_run("words").snapshot.experiment.model.new_tokens == ("<city>", "<date>")
    for wrong, said in (("<city>,<city>", "named twice"), ([" "], "at least one visible character")):
        with pytest.raises(RankwiseError, match=said):
            rankwise.ModelConfig(name="m", new_tokens=wrong)
