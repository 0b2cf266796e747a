"""Sequence to sequence from training to answers and exports, and what is refused with one sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForSeq2SeqLM, get_peft_model
from peft import LoraConfig as PeftLora
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from kit import planted
from kit.classifiers import write_rows
from kit.command import done, printed, rankwise
from kit.interrupted import whole_and_resumed
from kit.sequence_models import KINDS, lands, sequence_folder
from rankwise.config.experiment import Experiment
from rankwise.config.models import ModelConfig
from rankwise.config.tasks import TaskConfig
from rankwise.config.validation import GenerationConfig
from rankwise.evaluation.metrics import METRICS, rows_of
from rankwise.exporting import verification
from rankwise.inference.generate import answers_in_turn
from rankwise.inference.tuned_model import load_tuned
from rankwise.objectives.sequence_to_sequence import encode_inputs

TRAINING = ("--steps", "30", "--batch-size", "4", "--learning-rate", "0.01", "--held-out", "4", "--backend", "eager",
            "--set", "model.dtype=float32")  # fmt: skip
RUNS: dict[str, tuple[str, ...]] = {
    "t5-lora": ("--model", "tiny-t5", "--rank", "4", "--set", "validation.scores=[exact,rouge_l]",
                "--set", "validation.answers=4"),
    "t5-adalora": ("--model", "tiny-t5", "--method", "adalora", "--budget", "3"),
    "bart-lora": ("--model", "tiny-bart", "--rank", "4"),
    "bart-full": ("--model", "tiny-bart", "--method", "full", "--learning-rate", "0.003"),
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sequences")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind in KINDS:
            sequence_folder(kind, Path(f"tiny-{kind}"), dropout=0.1)
        write_rows("rows.jsonl", lands(20))
        write_rows("other.jsonl", lands(5, 40))
        for run, words in RUNS.items():
            done("train", *words, "--data", "rows.jsonl", "--run", run, *TRAINING)
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


@pytest.mark.parametrize("run", RUNS)
def test_training_lowers_the_loss_on_rows_that_were_held_out(here, run):
    results = json.loads(Path(f"runs/{run}/manifest.json").read_text())["results"]
    assert results["validation_loss_after"] < results["validation_loss_before"] - 0.5
    report = json.loads(Path(f"runs/{run}/data_report.json").read_text())
    assert report["encoder_decoder"] and report["template"] is None
    assert report["eos_in_loss"] == report["sequences"] == 20


def test_the_objective_follows_from_the_model_and_is_told(here):
    result = done("train", "--model", "tiny-bart", "--data", "rows.jsonl", "--run", "told", "--steps", "1", "--json")
    assert "the objective is sequence-to-sequence: tiny-bart is an encoder with a decoder (bart)" in result.stderr
    summary = json.loads(result.stdout)
    assert summary["adapter"] == "runs/told/adapter" and summary["steps"] == 1
    assert json.loads(Path("runs/told/config.json").read_text())["objective"] == "sequence-to-sequence"


@pytest.mark.parametrize("run", ["t5-lora", "bart-lora"])
def test_answers_are_transformers_own_alone_and_together(here, run):
    """Greedy, from the folder that PEFT opens; a padded batch answers as each row alone."""
    tuned = load_tuned(run)
    texts = [row["input"] for row in lands(5, 40)]
    prompts = encode_inputs(tuned.model.tokenizer, texts)
    assert len({len(ids) for ids in prompts}) > 1
    spec = GenerationConfig(max_new_tokens=20, repetition_check=False)
    together = answers_in_turn(tuned.model, prompts, spec)
    alone = [answers_in_turn(tuned.model, [ids], spec)[0] for ids in prompts]
    assert [one.ids for one in together] == [one.ids for one in alone]
    theirs, tokenizer = (
        AutoPeftModelForSeq2SeqLM.from_pretrained(f"runs/{run}/adapter").eval(),
        tuned.model.tokenizer.hub,
    )
    for text, answer in zip(texts, together, strict=True):
        ids = theirs.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=20, do_sample=False)
        assert tokenizer.decode(ids[0], skip_special_tokens=True) == answer.text


def test_both_models_answer_a_prompt(here):
    shown = printed("generate", "t5-lora", "--prompt", "What is land 9?", "--both", "--max-new-tokens", "12")
    assert shown["answer"].startswith("It is town") and shown["base_answer"] != shown["answer"]


def test_a_streamed_answer_is_the_whole_one(here):
    from rankwise.rows.text.example import Message

    pieces: list[str] = []
    tuned, spec = load_tuned("bart-lora"), GenerationConfig(max_new_tokens=12)
    answer = tuned.answer([Message("user", "What is land 9?")], spec, on_text=pieces.append)
    assert "".join(pieces) == answer.text


def test_evaluation_gives_the_loss_of_both_and_scores_answers(here):
    from rankwise.commands.evaluate import evaluate

    found = evaluate("t5-lora", TaskConfig(task="lands", data="other.jsonl", score=("loss", "exact", "rouge_l", "chrf"),
                                           max_new_tokens=20))  # fmt: skip
    assert found.forgetting is None and found.base is not None
    tuned, base = found.tuned.metrics, found.base.metrics
    assert tuned["loss"].value < base["loss"].value
    answers, targets = found.tuned.answers, [(row["output"],) for row in lands(5, 40)]
    assert answers is not None
    for metric in ("exact", "rouge_l", "chrf"):
        ours = METRICS[metric].value(rows_of(metric, answers, targets, None))
        assert tuned[metric].value == pytest.approx(ours)
    assert tuned["rouge_l"].value > base["rouge_l"].value


def test_the_loss_of_an_evaluation_is_that_of_the_last_validation(here):
    results = json.loads(Path("runs/bart-lora/manifest.json").read_text())["results"]
    found = printed("evaluate", "bart-lora")
    assert found["metrics"]["loss"]["value"] == pytest.approx(results["validation_loss_after"], rel=1e-5)
    assert found["base"]["loss"]["value"] == pytest.approx(results["validation_loss_before"], rel=1e-5)


@pytest.mark.parametrize("run", ["t5-adalora", "bart-full"])
def test_a_merged_export_opens_in_transformers_and_answers_the_same(here, run, tmp_path):
    said = done("export", run, "--to", str(tmp_path / "merged"), "--format", "merged", "--no-verify").output
    assert "AutoModelForSeq2SeqLM.from_pretrained" in said
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged").eval()
    tokenizer, tuned = AutoTokenizer.from_pretrained(tmp_path / "merged"), load_tuned(run)
    inputs = tokenizer("What is land 9?", return_tensors="pt")
    labels = tokenizer(text_target="It is town 10.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        ours, theirs = (one(**inputs, labels=labels).logits for one in (tuned.model.module, model))
    assert (ours - theirs).abs().max() <= 1e-5 * ours.abs().max()


@pytest.mark.parametrize(("kind", "format"), zip(KINDS, ("peft", "merged"), strict=True))
def test_an_export_is_asked_through_transformers_and_is_right(here, kind, format, tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "ask", planted.ask_here)
    monkeypatch.setenv("RANKWISE_ENGINES", sys.executable)
    words = ("export", f"{kind}-lora", "--to", str(tmp_path / format), "--format", format, "--json", "--verify")
    found = json.loads(done(*words).stdout)
    [verdict] = found["engines"].values()
    assert verdict["status"] == "right", found


def test_an_export_with_another_factor_is_found_out(here, tmp_path, monkeypatch):
    def ask(engine, python, request, seconds=0):
        file = Path(request["export"]) / "adapter_model.safetensors"
        save_file({name: 1.5 * value for name, value in load_file(file).items()}, file)
        return planted.ask_here(engine, python, request)

    monkeypatch.setattr(verification, "ask", ask)
    monkeypatch.setenv("RANKWISE_ENGINES", sys.executable)
    result = rankwise("export", "t5-lora", "--to", str(tmp_path / "peft"), "--verify")
    assert result.exit_code != 0 and "is not what was trained" in result.stderr


def test_somebody_else_s_adapter_is_known_by_its_task(here, tmp_path):
    torch.manual_seed(0)
    base = AutoModelForSeq2SeqLM.from_pretrained("tiny-t5")
    theirs = get_peft_model(base, PeftLora(r=2, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")).eval()
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "lora_B" in name:
                value.normal_()
    theirs.save_pretrained(tmp_path / "theirs")
    words = ("--prompt", "What is land 9?", "--base-model", "tiny-t5", "--max-new-tokens", "8", "--json")
    assert json.loads(done("generate", str(tmp_path / "theirs"), *words).stdout)["answer_tokens"] == 8
    # The command answers in the machine's number format, in which near ties fall otherwise; float32 is compared here.
    exact = ModelConfig(name="tiny-t5", dtype="float32")
    ours = load_tuned(str(tmp_path / "theirs"), config=exact)
    inputs = AutoTokenizer.from_pretrained("tiny-t5")("What is land 9?", return_tensors="pt")
    ids = theirs.generate(**inputs, max_new_tokens=8, do_sample=False)
    [answer] = answers_in_turn(ours.model, [inputs["input_ids"][0].tolist()], GenerationConfig(max_new_tokens=8))
    assert list(answer.ids) == ids[0, 1:].tolist()
    with torch.no_grad():
        logits, expected = (one(**inputs, labels=ids).logits for one in (ours.model.module, theirs))
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_card_says_how_the_adapter_is_loaded(here):
    card = Path("runs/t5-lora/adapter/README.md").read_text()
    assert "AutoPeftModelForSeq2SeqLM" in card and "CausalLM" not in card and "text2text-generation" in card
    settings = json.loads(Path("runs/t5-lora/adapter/adapter_config.json").read_text())
    assert settings["task_type"] == "SEQ_2_SEQ_LM"


def test_a_run_that_goes_on_ends_as_one_that_was_never_stopped(here):
    def experiment(run: str) -> Experiment:
        return Experiment(
            model={"name": "tiny-t5", "dtype": "float32"}, run=run, adapter={"method": "adalora"},
            data={"path": "rows.jsonl"},
            training={"steps": 12, "batch_size": 4, "learning_rate": 0.01, "checkpoint_steps": 4},
        )  # fmt: skip

    whole, resumed = whole_and_resumed(experiment, 6)
    assert whole == resumed


def test_activation_checkpointing_changes_no_byte(here):
    for blocks in (0, 4):
        done("train", "--model", "tiny-t5", "--data", "rows.jsonl", "--run", f"blocks-{blocks}", *TRAINING,
             "--steps", "4", "--rank", "2", "--set", f"training.activation_checkpointing={blocks}")  # fmt: skip
    saved, again = (Path(f"runs/blocks-{blocks}/adapter/adapter_model.safetensors") for blocks in (0, 4))
    assert saved.read_bytes() == again.read_bytes()


def test_the_page_and_the_preview_show_inputs_and_outputs(here):
    page = Path("runs/t5-lora/report.html").read_text()
    assert "nats per loss token" in page and "What is land" in page
    shown = done("data", "preview", "rows.jsonl", "--model", "tiny-bart").output
    assert "<s>What is land 0?</s>" in shown and "<s>It is town 1.</s>" in shown


def test_the_plan_counts_encoder_and_decoder(here):
    counted = printed("plan", "--model", "tiny-t5", "--data", "rows.jsonl", "--rank", "4")
    manifest = json.loads(Path("runs/t5-lora/manifest.json").read_text())
    assert counted["trainable_parameters"] == manifest["results"]["trainable_parameters"]
    report = json.loads(Path("runs/t5-lora/data_report.json").read_text())
    assert counted["tokens"]["likely"] == report["tokens"] and counted["loss_tokens"]["likely"] == report["loss_tokens"]
    assert counted["memory_bytes"]["activations"] > 0 and counted["seconds"] > 0
    lengths, text = report["lengths"], done("plan", "--model", "tiny-t5", "--data", "rows.jsonl").stdout
    assert f"the longer has {lengths['median']} tokens in the median, at most {lengths['longest']}" in text


BAD = {
    "empty input": ({"input": " ", "output": "a"}, "rows-bad.jsonl:3: the input is"),
    "empty output": ({"input": "a", "output": ""}, "rows-bad.jsonl:3: the output is"),
    "no output": ({"input": "a"}, "rows-bad.jsonl:3: "),
    "a number": ({"input": "a", "output": 3}, "rows-bad.jsonl:3: the output is 3; text is expected"),
    "a system message": ({"input": "a", "output": "b", "system": "be kind"}, "rows-bad.jsonl:3: is a conversation"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_rows_are_refused_in_one_sentence(here, kind):
    row, said = BAD[kind]
    write_rows("rows-bad.jsonl", [*lands(2), row, *lands(2, 7)])
    result = rankwise("train", "--model", "tiny-t5", "--data", "rows-bad.jsonl", "--run", "bad")
    assert result.exit_code == 2 and said in result.stderr and "Traceback" not in result.stderr, result.stderr


def test_several_turns_are_refused(here):
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user", "assistant")]
    Path("turns.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    result = rankwise("train", "--model", "tiny-t5", "--data", "turns.jsonl", "--run", "bad")
    assert result.exit_code == 2
    assert "turns.jsonl:1: is a conversation (user, assistant, user, assistant), and one input" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "data.packing=true"), "data.packing"),
        (("--set", "data.learned=everything"), "data.learned"),
        (("--set", "data.system=Hi"), "data.system"),
        (("--replay", "0.2"), "training.replay"),
        (("--backend", "fused"), "training.backend is fused, which is not available"),
        (("--objective", "causal-lm"), "is trained with the objective sequence-to-sequence"),
        (("--preference-loss", "orpo"), "the setting preference has no effect"),
    ],
)
def test_what_has_no_effect_is_refused_by_name(here, words, said):
    result = rankwise("train", "--model", "tiny-t5", "--data", "rows.jsonl", "--run", "bad", *words)
    assert result.exit_code == 2 and said in result.stderr, result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("export", "t5-lora", "--to", "x", "--format", "gguf"), "--format gguf is for decoders alone"),
        (("evaluate", "t5-lora", "--blocks", "4"), "--blocks is for running text"),
        (("evaluate", "t5-lora", "--task", "lm-eval:hellaswag"), "with decoders alone"),
        (("generate", "t5-lora", "--prompt", "a", "--system", "b"), "an encoder reads one text"),
        (("advise", "--model", "tiny-t5", "--data", "rows.jsonl"), "advise measures decoders and classifiers"),
    ],
)
def test_what_only_decoders_can_do_is_refused_by_name(here, words, said):
    result = rankwise(*words)
    assert result.exit_code == 2 and said in result.stderr, (result.output, result.exception)
    assert not Path("x").exists()


def test_a_decoder_is_refused_for_the_objective(here, tiny_folder):
    result = rankwise("train", "--model", str(tiny_folder), "--data", "rows.jsonl", "--run", "bad",
                      "--objective", "sequence-to-sequence")  # fmt: skip
    assert result.exit_code == 2 and "is not an encoder with a decoder, as T5 and BART are" in result.stderr


OTHERS = {
    "preference": {"prompt": "land 1", "chosen": "town 2", "rejected": "town 3"},
    "token-classification": {"tokens": ["land", "1"], "tags": ["O", "B-LAND"]},
}


@pytest.mark.parametrize(("command", "kind"), zip([("train", "--run", "bad"), ("plan",)], KINDS, strict=True))
@pytest.mark.parametrize("objective", OTHERS)
def test_an_encoder_with_a_decoder_learns_neither_pairs_nor_tags(here, objective, command, kind):
    write_rows("others.jsonl", [OTHERS[objective]] * 8)
    words = ("--model", f"tiny-{kind}", "--data", "others.jsonl")
    for chosen in (("--objective", objective), ())[: 1 + (objective == "token-classification")]:
        result = rankwise(*command, *words, *chosen)
        assert result.exit_code == 2, (result.output, result.exception)
        assert f"the objective is {objective}, but tiny-{kind} ({kind}) is an encoder with a decoder" in result.stderr
