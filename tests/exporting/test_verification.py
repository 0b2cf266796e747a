"""An export is compared with ours in somebody else's engine: good ones pass, and every planted fault is seen."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from kit import planted
from kit.command import printed, rankwise
from kit.gguf_models import adapter_in, model_in
from rankwise.base.beside import copy_reader
from rankwise.commands import export as export_command
from rankwise.errors import ModelError
from rankwise.exporting import adapter_export, verification
from rankwise.exporting.agreement import EngineVerdict
from rankwise.exporting.engine_process import engines_for
from rankwise.exporting.reference import prompts_for
from rankwise.exporting.verification import Export, Verification, Verifying, with_rules
from rankwise.inference.tuned_model import load_tuned
from rankwise.methods.artifact import open_artifact
from rankwise.rows.text.tokenize import prompt_ids
from rankwise.runs.records import silent


@pytest.fixture(autouse=True)
def engines_here(monkeypatch):
    monkeypatch.setattr(verification, "ask", planted.ask_here)
    monkeypatch.setenv("RANKWISE_ENGINES", sys.executable)


@pytest.fixture(scope="module")
def bases(tmp_path_factory, hub_tokenizer):
    return tmp_path_factory.mktemp("bases")


def exported(folder, bases, tokenizer, kind, format, seed=3):
    """The adapter, its export and our reference."""
    architecture, settings = planted.KINDS[kind]
    base = planted.base_folder(bases, architecture, tokenizer)
    adapter = planted.random_adapter(folder / "adapter", base, architecture, tokenizer, seed, **settings)
    export_command.export(str(adapter), folder / "export", format, verifying=Verifying("no"))
    artifact = open_artifact(str(adapter))
    written = Export(str(folder / "export"), format)
    return base, written, verification._reference(artifact, written, Verifying("yes"), 4, silent)


def verdict(written, reference):
    engine, _ = engines_for(written.format, [sys.executable])[0]
    return verification._verdict(engine, "", reference, written, Verifying("yes"), {"export": written.path}, silent)


@pytest.mark.parametrize(
    ("kind", "format"), [("rank pattern", "portable"), ("LoRA", "merged"), ("Conv1D", "peft"), ("DoRA", "merged")]
)
def test_every_planted_fault_is_seen_and_the_good_export_passes(bases, hub_tokenizer, tmp_path, kind, format):
    base, written, reference = exported(tmp_path, bases, hub_tokenizer, kind, format)
    other = planted.base_folder(bases, planted.KINDS[kind][0], hub_tokenizer, seed=1)
    good = verdict(written, reference)
    assert good.status == "right" and good.figures.mean_difference < 1e-5, good
    assert good.figures.prompts_equal == good.figures.answers_equal == 4 and good.figures.conversations_equal == 3
    whole = Path(written.path)
    for name, plant in planted.FAULTS.items():
        shutil.copytree(whole, tmp_path / "kept")
        try:
            plant(whole, base, other)
        except StopIteration:  # no square layer
            pass
        else:
            assert verdict(written, reference).status == "wrong", name
        shutil.rmtree(whole)
        (tmp_path / "kept").rename(whole)


@pytest.fixture
def home(library, tmp_path, monkeypatch):
    monkeypatch.chdir(library.lay_out(tmp_path / "home", "lora", "full"))
    return tmp_path / "home"


@pytest.mark.parametrize(("run", "format"), [("lora", "portable"), ("lora", "merged"), ("full", "merged")])
def test_an_export_is_verified_by_default_and_says_so(home, run, format):
    facts = printed("export", run, "--to", "out", "--format", format)
    engine = "transformers" if format == "merged" else "peft"
    assert [name for name, one in facts["engines"].items() if one["by"] == "run"] == [engine]
    verified = facts["engines"][engine]
    assert (verified["status"], verified["by"], verified["why"]) == ("right", "run", None)
    assert verified["answers_equal"] == verified["questions"] == 4 and facts["verified_with"] == "4 validation rows"
    assert 0 <= facts["max_log_probability_difference"] < 1e-4
    assert 0 <= facts["max_logit_difference"] < 1e-4
    assert facts["files"] == sorted(p.relative_to("out").as_posix() for p in Path("out").rglob("*") if p.is_file())
    assert facts["template_parity"]["in"] == "chat_template.jinja" and facts["not_verified"] is None
    if format == "merged":
        assert json.loads(Path("out/config.json").read_text())["rope_theta"] == 10_000, "as mlx-lm reads it"
    else:
        card = Path("out/README.md").read_text()
        assert f"- {engine} {verified['version']}: right (4 of 4 answers equal" in card


@pytest.mark.parametrize("format", ["portable", "merged"])
def test_an_export_that_another_engine_reads_otherwise_is_not_left_there(home, monkeypatch, format):
    whole = export_command._write_export

    def doubled(order):
        told, folder = whole(order), order.folder
        planted.scale_doubled(folder, home / "tiny-llama", home)
        return told

    monkeypatch.setattr(export_command, "_write_export", doubled)
    result = rankwise("export", "lora", "--to", "out", "--format", format)
    assert result.exit_code == 1 and "nothing was left there" in result.stderr, result.output
    assert "log-probabilities differ by" in result.stderr and "--no-verify" in result.stderr
    assert not any("out" in path.name for path in home.iterdir())
    left = rankwise("export", "lora", "--to", "out", "--format", format, "--no-verify")
    assert left.exit_code == 0 and "not verified by an engine: --no-verify was given" in left.stdout


def test_a_model_that_memory_has_no_room_for_in_float32_is_not_asked_by_itself(home, monkeypatch):
    artifact, free = open_artifact("lora"), SimpleNamespace(available=5.7e9)
    monkeypatch.setattr(verification, "psutil", SimpleNamespace(virtual_memory=lambda: free))
    monkeypatch.setattr(verification, "stored_as", lambda *given: (None, 10**9))  # 1.4 times 4 bytes of each number
    assert verification._questions(artifact, Verifying(), silent) == 6
    free.available = 5.5e9
    with pytest.raises(ModelError, match=r"1\.0 billion parameters, which take 6 GB in float32"):
        verification._questions(artifact, Verifying(), silent)


def test_a_half_strength_export_is_compared_with_half_the_change(home):
    assert rankwise("export", "lora", "--to", "half", "--format", "portable", "--strength", "0.5").exit_code == 0
    artifact = open_artifact("lora")
    written = Export("half", "portable")
    assert verdict(written, verification._reference(artifact, written, Verifying("yes"), 4, silent)).status == "wrong"


def test_rows_that_are_gone_are_replaced_by_built_in_prompts(home):
    Path("rows.jsonl").unlink()
    assert printed("export", "lora", "--to", "out")["verified_with"] == "8 built-in prompts"


def test_other_rows_can_be_asked(home):
    result = rankwise("export", "lora", "--to", "out", "--verify-data", "apart.jsonl", "--json")
    assert json.loads(result.stdout)["verified_with"] == "3 rows of apart.jsonl", result.output


def test_without_its_base_an_adapter_is_exported_and_said_not_to_be_verified(home):
    words = ("export", "lora", "--to", "out", "--base-model", "organisation/model")
    result = rankwise(*words)
    assert result.exit_code == 0 and "organisation/model" in result.stdout, result.output
    assert "not verified by an engine" in result.stdout
    shutil.rmtree("out")
    assert rankwise(*words, "--verify").exit_code == 2 and not Path("out").exists()


@pytest.mark.parametrize("format", ["peft", "mlx"])
def test_force_base_reaches_the_base_that_an_adapter_is_verified_over(home, format):
    base = home / "tiny-llama" / "model.safetensors"
    save_file({key: value * 1.01 for key, value in load_file(base).items()}, base, metadata={"format": "pt"})
    words = ("export", "lora", "--to", "out", "--format", format, "--base-model", base.parent)
    refused = rankwise(*words, "--no-verify", "--force-base")
    assert refused.exit_code == 2 and "--no-verify loads no base model" in refused.stderr and not Path("out").exists()
    if format == "peft":
        without = rankwise(*words)
        assert without.exit_code == 0 and "different weights" in without.stdout, without.output
        shutil.rmtree("out")
    engines = printed(*words, "--force-base")["engines"]
    assert format == "mlx" or (engines["peft"]["status"] == "right" and engines["peft"]["by"] == "run")


@pytest.mark.parametrize("format", ["peft", "portable", "merged"])
def test_the_template_in_a_folder_is_compared_with_training_s(home, format):
    result = rankwise("export", "lora", "--to", "out", "--format", format, "--no-verify", "--json")
    parity = json.loads(result.stdout)["template_parity"]
    assert parity["conversations"] == parity["same"] > 3, result.output
    assert parity["in"] == "chat_template.jinja" and parity["refused"] == []
    assert not {"different"} & parity.keys()


def test_a_folder_without_a_template_or_with_another_one_says_so(home, monkeypatch):
    for file in ("chat_template.jinja", "tokenizer.json"):
        with monkeypatch.context() as patched:
            left_out = partial(_copied, left_out=file)
            patched.setattr(adapter_export, "copy_reader", left_out)
            result = rankwise("export", "lora", "--to", file, "--no-verify", "--json")
        parity = json.loads(result.stdout)["template_parity"]
        assert (parity["conversations"], parity["same"], parity["in"]) == (0, 0, None)
        assert parity["refused"] == ["no chat template was written, so a reader uses the base model's own"]
    with monkeypatch.context() as patched:
        patched.setattr(adapter_export, "copy_reader", lambda source, target: _other_template(source, target))
        result = rankwise("export", "lora", "--to", "other", "--no-verify", "--json")
    parity = json.loads(result.stdout)["template_parity"]
    assert parity["same"] < parity["conversations"] == len(parity["different"]) + parity["same"]
    assert "otherwise than training" in result.stderr


def _copied(source, target, left_out):
    copy_reader(source, target)
    (target / left_out).unlink()
    return True


def _other_template(source, target):
    copy_reader(source, target)
    planted.other_template(target, source, source)
    return True


def test_rules_speak_of_the_engines_that_did_not_run():
    ran = EngineVerdict("peft", "right", version="1")
    both = with_rules(
        Verification("8 prompts", (ran,)), {"peft": "its rule", "vLLM": None, "SGLang": "it reads no patterns"}
    )
    assert both.verdicts[0] is ran and not both.wrong
    assert both.summary()["engines"]["SGLang"] == {
        "status": "wrong", "why": "it reads no patterns", "by": "rule", "version": None,
    }  # fmt: skip
    assert both.lines() == [
        "peft 1: right; asked: 8 prompts", "by their rules, not run: vLLM should read it as it was trained",
        "SGLang: wrong: it reads no patterns (by rule; not run)",
    ]  # fmt: skip


def test_without_an_engine_it_is_said(home, monkeypatch):
    monkeypatch.setenv("RANKWISE_ENGINES", "")
    result = rankwise("export", "lora", "--to", "out", "--verify", "--json")
    assert result.exit_code == 0
    assert {one["by"] for one in json.loads(result.stdout)["engines"].values()} == {"rule"}
    assert "no engine that reads peft" in json.loads(result.stdout)["not_verified"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--verify", "--no-verify"), "exclude each other"),
        (("--no-verify", "--verify-data", "apart.jsonl"), "--no-verify runs no engine"),
        (("--server-model", "x"), "give its address"),
        (("--engine-python", "/nowhere/python"), "there is no interpreter"),
        (("--verify", "http://127.0.0.1:9"), "Export it first"),
    ],
)
def test_wishes_that_do_not_fit_are_refused_before_anything_is_written(home, words, reason):
    result = rankwise("export", "lora", "--to", "out", *words)
    assert result.exit_code == 2 and reason in result.stderr, result.output
    assert not Path("out").exists()


@pytest.mark.parametrize(("family", "pieces"), [("llama2", "prepend"), ("gemma", "bare"), ("chatml", "gpt2")])
def test_the_text_of_a_built_in_prompt_has_the_ids_that_are_compared(family, pieces, tmp_path):
    base = model_in(tmp_path / "base", "llama", family, pieces)
    tuned = load_tuned(str(adapter_in(tmp_path / "adapter", base, ["q_proj"])))
    prompts, about = prompts_for(tuned, 8, None)
    assert about == "8 built-in prompts" and len(prompts) == 8
    assert [tuple(prompt_ids(one.text, tuned.model.tokenizer)) for one in prompts] == [one.ids for one in prompts]
