"""A run that is measured while it trains: it learns the same, may end early, and keeps the step it says it keeps."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rankwise
from kit.summed_losses import summed
from rankwise.adapters.formats.peft import write_peft
from rankwise.config.validation import GenerationConfig
from rankwise.errors import ConfigError, RunError
from rankwise.forward.reference import SupervisedLogits
from rankwise.methods.adalora import TrainableAdaLora
from rankwise.methods.inject import inject
from rankwise.methods.trainable import TrainableState
from rankwise.rows.encoded.batches import collate
from rankwise.rows.preparing import prepare
from rankwise.rows.writing import TextWriting
from rankwise.runs.directory import RunDirectory
from rankwise.runs.metrics_log import read_metrics_log
from rankwise.runs.records import LossRecord, SampleRecord, ScoreRecord, StatusMessage, StepRecord, silent
from rankwise.training.losses import sum_loss
from rankwise.training.state import preserve_rng_state
from rankwise.training.validation import EarlyStopping
from rankwise.training.validation_prompts import score

STEPS = 12
METHODS = {
    "lora": rankwise.LoraConfig(rank=4, dropout=0.3),
    "wide": rankwise.LoraConfig(rank=16),
    "eva": rankwise.LoraConfig(rank=2, start="eva"),
    "upper": rankwise.LoraConfig(rank=4, dropout=0.3, layers=(1,)),
    "adalora": rankwise.AdaLora(budget=2, dropout=0.3, final=0.6),
    "masked": rankwise.AdaLora(budget=2, dropout=0.3, final=0.6, shrink=False),
}
DECIDED = 6
"""AdaLoRA's ranks are final after this step."""
UNSTEADY = {"steps": STEPS, "batch_size": 3, "learning_rate": 1.0, "schedule": "constant", "warmup": 0}
"""So high a rate that the held-out loss rises again."""
RATES = (1.0, 0.7, 0.5, 0.85, 0.35, 0.25, 0.6, 0.15, 0.1, 0.4, 0.05, 0.9, 0.3)
"""When it does differs with a processor's rounding, so a test that needs it somewhere looks for a rate."""
ALL = {"steps": 1, "scores": ["exact", "bleu"], "answers": 4, "max_new_tokens": 6, "prompts": ["What is land 3?"]}


class Stopped(Exception):
    pass


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = {n: f"It is town {n * 7 % 10}." if n < 20 else f"It could be lake {n}, or the dog." for n in range(40)}
    for name, numbers in (("rows", range(9)), ("measured", range(20, 26))):
        rows = [{"prompt": f"What is land {n}?", "completion": told[n]} for n in numbers]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def asked(tiny_folder):
    """An experiment; `evaluation` None has no rows to measure with at all."""

    def experiment(run, method="lora", evaluation=None, **training):
        rows = {"path": "rows.jsonl"} if evaluation is None else {"path": "rows.jsonl", "validation": "measured.jsonl"}
        return rankwise.Experiment(
            model=str(tiny_folder), data=rows, run=run, adapter=METHODS[method], training={**UNSTEADY, **training},
            validation=evaluation or {},
        )  # fmt: skip

    return experiment


def exactly(experiment):
    """In float32, so that how many are computed together changes next to nothing."""
    return experiment.model_copy(update={"model": experiment.model.model_copy(update={"dtype": "float32"})})


def weights(run):
    return (Path("runs") / run / "adapter" / "adapter_model.safetensors").read_bytes()


def rows_of(run, *kinds):
    """What the metrics log tells apart from time and memory."""
    rows = read_metrics_log(Path("runs") / run / "metrics.jsonl")
    timed = ("seconds", "tokens_per_second", "resident_bytes")
    return [{key: row[key] for key in row if key not in timed} for row in rows if not kinds or row["kind"] in kinds]


def evaluations(run):
    kinds = {"validation": LossRecord, "score": ScoreRecord}
    return [kinds[row.pop("kind")](**row) for row in rows_of(run, *kinds)]


def results(trained):
    timed = {"train_seconds", "tokens_per_second", "peak_rss_bytes"}
    return trained.manifest.results.model_dump(exclude=timed)


def first_that(holds, asked, *given, rates=RATES, seeds=(0, 1, 2), **named):
    """Of the runs at these rates: its name, how it was asked for and what it came to."""
    for seed, rate in product(seeds, rates):
        name, how = f"at-{rate:g}-{seed}", {"learning_rate": rate, "seed": seed}
        trained = rankwise.train(asked(name, *given, **named, **how))
        if holds(name, trained):
            return name, how, trained
    raise AssertionError("none of these rates will do")


# It learns the same


@pytest.mark.parametrize(
    ("method", "backend"),
    [*((method, "fused") for method in ("eva", "upper", "masked")), ("lora", "eager"), ("adalora", "eager")],
)
def test_a_run_that_is_measured_learns_what_one_learns_that_is_not(asked, method, backend):
    unmeasured = rankwise.train(asked("without", method, backend=backend))
    measured = rankwise.train(asked("with", method, ALL | {"steps": 3}, backend=backend))
    assert measured.manifest.backend == unmeasured.manifest.backend == backend
    assert weights("with") == weights("without")
    assert rows_of("with", "step", "ranks") == rows_of("without", "step", "ranks")
    assert [row["step"] for row in rows_of("with", "validation")] == list(range(0, STEPS + 1, 3))


def test_packed_rows_too(asked):
    for run, evaluation in (("without", None), ("with", ALL | {"steps": 3})):
        experiment = asked(run, "lora", evaluation, backend="eager")
        data = experiment.data.model_copy(update={"packing": True})
        rankwise.train(experiment.model_copy(update={"data": data}))
    assert weights("with") == weights("without")


def test_the_model_is_left_as_it_was(asked, tiny_folder):
    model = rankwise.load(str(tiny_folder))
    modes = [part.training for part in model.module.modules()]
    torch.manual_seed(3)
    trained = rankwise.train(asked("run", "lora", ALL), model=model)
    assert trained.model.module is model.module
    assert not any(part.training for part in trained.trainable.adapters.adapters().values())
    trained.trainable.remove()
    assert [part.training for part in model.module.modules()] == modes
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.module.modules())


# What is recorded


def test_each_evaluation_is_recorded_once_and_where_it_was_due(asked):
    heard = []
    rankwise.train(asked("run", "lora", ALL | {"steps": 5}), callback=heard.append)
    rows = rows_of("run")
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [0, 5, 10, 12]
    assert [(row["step"], row["metric"]) for row in rows if row["kind"] == "score"] == [
        (step, metric) for step in (0, 5, 10, 12) for metric in ("exact", "bleu")
    ]
    assert [row["step"] for row in rows if row["kind"] == "sample"] == [0, 12]
    kept = (StepRecord, LossRecord, ScoreRecord, SampleRecord)
    assert [record.as_row()["kind"] for record in heard if isinstance(record, kept)] == [row["kind"] for row in rows]
    # an evaluation comes after its own step and before the next
    order = [row["step"] for row in rows]
    assert order == sorted(order)


def test_by_default_there_is_a_curve_and_three_rows_are_answered(asked):
    trained = rankwise.train(asked("run", "lora", {}, steps=40))
    rows = rows_of("run", "validation", "sample")
    steps = [row["step"] for row in rows if row["kind"] == "validation"]
    assert steps[0] == 0 and steps[-1] == 40 and 3 < len(steps) <= 11
    samples = [row for row in rows if row["kind"] == "sample"]
    assert [row["step"] for row in samples] == [0] * 3 + [40] * 3
    assert [row["prompt"] for row in samples[:3]] == [f"What is land {n}?" for n in (20, 22, 24)]
    assert [row["target"] for row in samples[:3]] == [f"It could be lake {n}, or the dog." for n in (20, 22, 24)]
    assert results(trained)["validation_loss_after"] == [row["loss"] for row in rows if row["kind"] == "validation"][-1]


def test_without_rows_to_measure_with_nothing_is_measured(asked):
    trained = rankwise.train(asked("run"))
    assert rows_of("run") == rows_of("run", "step")
    found = results(trained)
    assert found["validation_loss_before"] is None and found["validation_loss_after"] is None
    assert (found["kept_step"], found["kept_why"], found["ended_early"]) == (STEPS, "the last step", None)


def test_samples_are_what_the_base_and_the_finished_run_answer(asked):
    prompts = ["What is a fox, and <|im_end|> a dog?", "Paris", "What is land 3?"]
    rankwise.train(exactly(asked("run", "lora", {"prompts": prompts, "max_new_tokens": 9}, learning_rate=0.02)))
    samples = rows_of("run", "sample")
    assert [(row["step"], row["prompt"]) for row in samples] == [(step, one) for step in (0, STEPS) for one in prompts]
    for row in samples:
        both = rankwise.generate("run", row["prompt"], GenerationConfig(max_new_tokens=9), both=True)
        assert row["answer"] == (both.base if row["step"] == 0 else both.adapted).text
    answers = [row["answer"] for row in samples]
    assert len(set(answers[:3])) == 3, "else any order would do"
    assert answers[:3] != answers[3:]


def test_a_score_is_that_of_the_answers_which_the_finished_run_gives_to_the_rows(asked):
    evaluation = {"by": "chrf", "scores": ["exact", "rouge_l", "bleu"], "answers": 6, "steps": 60, "max_new_tokens": 20}
    words = ["fox", "dog", "Paris", "France", "lazy", "urgency"]
    rows = [{"prompt": " ".join([word] * (6 - n)), "completion": f"{word} it is"} for n, word in enumerate(words)]
    for name in ("rows", "measured"):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def answers(name):
        spec = GenerationConfig(max_new_tokens=20)
        return [rankwise.generate(name, row["prompt"], spec).adapted.text for row in rows]

    def in_float32(*given, **named):
        return exactly(asked(*given, **named))

    texts = {}

    def differ(name, _):
        texts[name] = answers(name)
        return len(set(texts[name])) > 2

    name, _, _ = first_that(
        differ, in_float32, "wide", evaluation, steps=60, rates=(0.02, 0.01, 0.03),
        seeds=(1, 0, 2),
    )  # fmt: skip
    found = {row["metric"]: (row["value"], row["n"]) for row in rows_of(name, "score") if row["step"] == 60}
    assert set(found) == {"chrf", "exact", "rouge_l", "bleu"}
    assert found["chrf"][0] > 0
    for metric, value in found.items():
        assert value == (score(metric, texts[name], [row["completion"] for row in rows]), 6), metric


@pytest.mark.parametrize("backend", ["fused", "eager"])
def test_the_loss_is_that_of_the_finished_run_on_each_row_alone_without_dropout(asked, backend):
    experiment = exactly(asked("run", "lora", {"steps": 5, "prompts": []}, backend=backend))
    rankwise.train(experiment)
    finished = rankwise.load_tuned("run").model
    writing = TextWriting(finished.tokenizer, finished.template, finished.source.name, finished.context_length)
    rows = prepare(experiment.data, writing, silent).measured_rows
    alone = [collate([row]) for row in rows]
    total, tokens = sum_loss(summed(SupervisedLogits(finished.module)), alone, torch.device("cpu"))
    last = [one for one in evaluations("run") if one.step == STEPS]
    assert [(one.loss_tokens, one.sequences) for one in last] == [(tokens, len(rows))]
    assert last[0].loss == pytest.approx(total / tokens, rel=1e-5)


# What is kept


@pytest.mark.parametrize(("by", "backend"), [("loss", "eager"), ("chrf", "fused")])
def test_the_best_that_is_kept_is_what_a_run_has_that_stops_there(asked, by, backend):
    evaluation = {"keep": "best", "steps": 1, "by": by, "answers": 0 if by == "loss" else 6, "prompts": [],
                  "max_new_tokens": 12}  # fmt: skip

    def best_of(name):
        return EarlyStopping(by, by != "loss").best(evaluations(name))

    def matters(name, trained):
        """The last would be the best by itself, and one measure could be the other."""
        by_loss = EarlyStopping("loss", False).best(evaluations(name)).step
        return best_of(name).step < STEPS and (by == "loss" or best_of(name).step != by_loss)

    name, how, trained = first_that(matters, asked, "lora", evaluation, backend=backend)
    found, best = results(trained), best_of(name)
    assert found["kept_step"] == best.step
    assert f"{best.value:.4f}" in found["kept_why"] and f"of {STEPS} validations" in found["kept_why"]
    # the rate is constant and rows are a function of the step, so a shorter run is the beginning of this one
    again = {"backend": backend, **how}
    shorter = rankwise.train(asked("shorter", "lora", {"prompts": []}, steps=best.step, **again))
    assert weights(name) == weights("shorter")
    assert found["validation_loss_after"] == results(shorter)["validation_loss_after"]
    rankwise.train(asked("last", "lora", evaluation | {"keep": "last"}, **again))
    assert weights("last") != weights(name) and rows_of("last") == rows_of(name)
    assert not (Path("runs") / name / "best").exists()


@pytest.mark.parametrize("method", ["lora", "masked"])
def test_the_model_that_is_returned_is_the_one_that_is_kept(asked, method):
    evaluation = {"keep": "best", "steps": 1, "prompts": ["What is land 21?"], "max_new_tokens": 9}
    name, _, trained = first_that(lambda _, made: results(made)["kept_step"] < STEPS, asked, method, evaluation)
    write_peft(trained.trainable.adapters, Path("again"), base_model="x", revision=None, extra_files={})
    assert Path("again/adapter_model.safetensors").read_bytes() == weights(name)
    last = rows_of(name, "sample")[-1]
    assert last["step"] == results(trained)["kept_step"]
    assert rankwise.generate(name, last["prompt"], GenerationConfig(max_new_tokens=9)).adapted.text == last["answer"]


def test_adalora_is_judged_once_its_ranks_are_decided(asked, tiny_folder):
    method = "adalora"
    evaluation = {"keep": "best", "steps": 1, "prompts": []}

    def bests(name):
        return [EarlyStopping("loss", False, first).best(evaluations(name)).step for first in (1, DECIDED)]

    def matters(name, trained):
        everywhere, candidate = bests(name)
        return everywhere < DECIDED < candidate < STEPS

    name, how, trained = first_that(matters, asked, method, evaluation, rates=sorted(RATES), seeds=(1, 0, 2))
    best = bests(name)[1]
    assert results(trained)["kept_step"] == best
    final = [row for row in rows_of(name, "ranks") if row["final"]]
    assert [row["step"] for row in final] == [DECIDED]
    # what lies in the checkpoint of another run after that very step, made into an adapter by itself
    with pytest.raises(Stopped):
        rankwise.train(
            asked("other", method, {"prompts": []}, checkpoint_steps=best, **how),
            callback=stopping(best),
        )
    held = load_file(f"runs/other/checkpoints/step-{best}/state.safetensors")
    facts = json.loads(Path(f"runs/other/checkpoints/step-{best}/state.json").read_text())["allocator"]
    adapters = inject(rankwise.load(str(tiny_folder)).module, METHODS[method])
    trainable = TrainableAdaLora(adapters, METHODS[method], STEPS)
    own = {key.removeprefix("allocator."): value for key, value in held.items() if key.startswith("allocator.")}
    trainable.load_state_dict(TrainableState(own, facts), torch.optim.AdamW(trainable.parameter_groups()))
    adapters.settle()
    write_peft(adapters, Path("by-hand"), base_model="x", revision=None, extra_files={})
    assert Path("by-hand/adapter_model.safetensors").read_bytes() == weights(name)


def stopping(step):
    """After the evaluation and the checkpoint of this step."""

    def hear(event):
        if isinstance(event, StepRecord) and event.step > step:
            raise Stopped

    return hear


# It ends early


@pytest.mark.parametrize(("method", "patience"), [("lora", 1), ("adalora", 2)])
def test_a_run_ends_when_its_patience_does_and_is_the_beginning_of_the_patient_one(asked, method, patience):
    evaluation = {"steps": 1, "prompts": []}
    rankwise.train(asked("patient", method, evaluation, schedule="linear"))
    judge = EarlyStopping("loss", False, DECIDED if method == "adalora" else 1)
    records = evaluations("patient")
    until = [[one for one in records if one.step <= step] for step in range(1, STEPS)]
    end = next((step for step, part in enumerate(until, 1) if judge.without_improvement(part) >= patience), STEPS)
    heard = []
    found = results(
        rankwise.train(
            asked("short", method, evaluation | {"patience": patience}, schedule="linear"), callback=heard.append
        )
    )
    assert found["steps"] == found["kept_step"] == end
    assert rows_of("short") == [row for row in rows_of("patient") if row["step"] <= end]
    assert (end == STEPS) == (found["ended_early"] is None)
    said = [
        event.text for event in heard if isinstance(event, StatusMessage) and event.text.startswith("ended after step")
    ]
    assert len(said) == (end < STEPS)
    if end < STEPS:
        assert f"ended after step {end} of {STEPS}: {patience} validations without a better validation loss" in said[0]
        assert found["ended_early"] in said[0]
        assert method == "lora" or end > DECIDED


# It goes on


class Listener:
    """Hears all, and stops a run after so many events that are recorded."""

    def __init__(self, last):
        self.last = last

    def __call__(self, event):
        if not isinstance(event, StatusMessage):
            self.last -= 1
            if self.last < 0:
                raise Stopped


STOPPED = ALL | {"keep": "best", "patience": 5, "answers": 2}


@pytest.fixture(scope="module")
def unstopped():
    """By method: results, records and weights of a run that nobody stops, trained once."""
    return {}


@pytest.fixture
def whole(asked, unstopped, method):
    if method not in unstopped:
        trained = rankwise.train(asked("whole", method, STOPPED, checkpoint_steps=2))
        unstopped[method] = results(trained), rows_of("whole"), weights("whole")
    return unstopped[method]


ONCE = [(19,), (22,), (25,)]
OFTEN = [(17, 4, 9), (31, 2, 2)]


@pytest.mark.parametrize(
    ("method", "stops"),
    [*(("adalora", stops) for stops in (*ONCE, OFTEN[1])), ("lora", OFTEN[0])],
    ids=str,
)
def test_a_run_that_was_stopped_anywhere_ends_as_one_that_never_was(asked, whole, method, stops):
    """Within an evaluation, between it and its checkpoint, before the next step; again and again."""
    resume = False
    for last in stops:
        with pytest.raises(Stopped):
            rankwise.train(asked("it", method, STOPPED, checkpoint_steps=2), callback=Listener(last), resume=resume)
        resume = True
        assert len(RunDirectory.named("it").snapshots.steps) <= 3
    trained = rankwise.train(asked("it", method, STOPPED, checkpoint_steps=2), resume=True)
    assert (results(trained), rows_of("it"), weights("it")) == whole
    names = {
        "config.json", "data_report.json", "manifest.json", "metrics.jsonl", "adapter", ".lock", "report.html",
        "report.json",
    }  # fmt: skip
    assert {path.name for path in Path("runs/it").iterdir()} == names


@pytest.fixture
def stopped(asked):
    """With a snapshot of a step before its last checkpoint."""
    experiment = asked("it", "lora", {"steps": 1, "keep": "best", "prompts": []}, checkpoint_steps=1)

    run = RunDirectory.named("it")

    def hear(event):
        if isinstance(event, StepRecord) and run.snapshots.steps and run.steps_saved[-1] not in run.snapshots.steps:
            raise Stopped

    with pytest.raises(Stopped):
        rankwise.train(experiment, callback=hear)
    return experiment


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_run_whose_best_is_gone_or_damaged_does_not_go_on_and_stays_as_it_is_until_it_is_begun_again(stopped):
    run = RunDirectory.named("it")
    assert run.snapshots.steps
    best = EarlyStopping("loss", False).best([one for one in evaluations("it") if one.step <= run.steps_saved[-1]])
    folder = run.snapshots.path(best.step)
    tensors, facts = folder / "state.safetensors", folder / "state.json"
    sound = content(folder)
    for damage in (
        lambda: tensors.write_bytes(sound[tensors][:-9]), lambda: facts.write_text("{}"), lambda: shutil.rmtree(folder)
    ):  # fmt: skip
        for path, held in sound.items():
            path.write_bytes(held)
        damage()
        before = content(run.folder)
        with pytest.raises(RunError, match=r"best/step-\d+.*--restart"):
            rankwise.train(stopped, resume=True)
        assert content(run.folder) == before
    kept = results(rankwise.train(stopped, restart=True))["kept_step"]
    assert (
        kept == EarlyStopping("loss", False).best(evaluations("it")).step
    )  # the last one, where the processor has no bfloat16
    assert not RunDirectory.named("it").snapshots.folder.exists()


# What is refused, and what is not asked


def test_a_best_among_one_is_refused_before_anything_is_written(asked):
    for method, steps in (("lora", 12), ("lora", 20), ("adalora", 12), ("adalora", 13)):
        with pytest.raises(ConfigError, match="only the last would be validated"):
            rankwise.train(asked("run", method, {"keep": "best", "steps": steps}))
        assert not Path("runs/run").exists()
    with pytest.raises(ConfigError, match=f"decided after {DECIDED}"):
        rankwise.train(asked("run", "adalora", {"keep": "best", "steps": 12}))
    rankwise.train(asked("run", "adalora", {"keep": "best", "steps": DECIDED}))


def test_a_metric_that_the_rows_cannot_have_is_refused_before_anything_is_written(asked):
    with pytest.raises(
        ConfigError,
        match="validation should score answers by json, but a reference answer of the validation rows is not JSON",
    ):
        rankwise.train(asked("run", "lora", {"by": "json", "answers": 2}))
    Path("measured.jsonl").write_text('{"prompt": "the quick", "completion": "brown fox"}\n' * 2)
    with pytest.raises(ConfigError, match=r"validation should score answers by number, .* contains no number"):
        rankwise.train(asked("run", "lora", {"by": "number", "answers": 2}))
    Path("measured.jsonl").write_text('{"text": "the quick brown fox"}\n')
    with pytest.raises(ConfigError, match="no validation row has a prompt to answer"):
        rankwise.train(asked("run", "lora", {"by": "exact", "answers": 2}))
    assert not Path("runs/run").exists()
    rankwise.train(asked("run", "lora", {}, steps=1))  # nor is it a sample
    assert rows_of("run", "sample") == [] and len(rows_of("run", "validation")) > 1


def test_a_prompt_that_has_no_room_is_refused_and_a_row_that_has_none_is_not_asked(asked):
    long = "What is " + "93#" * 80
    with pytest.raises(ConfigError, match="does not fit into the model's context"):
        rankwise.train(asked("run", "lora", {"prompts": [long]}))
    with pytest.raises(ConfigError, match=r"max_new_tokens: with 9,999 new tokens .* context of 256"):
        rankwise.train(asked("run", "lora", {"by": "exact", "answers": 2, "max_new_tokens": 9999}))
    assert not Path("runs/run").exists()
    rows = [{"prompt": long[:160] if n == 1 else "What is it?", "completion": f"It is {n}."} for n in range(3)]
    Path("measured.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rankwise.train(asked("run", "lora", {"scores": ["exact"], "answers": 3, "max_new_tokens": 120}, steps=1))
    assert {row["n"] for row in rows_of("run", "score")} == {2}


def test_of_a_conversation_the_last_answer_is_asked_with_all_that_was_said_before(asked):
    turns = [("user", "Hello fox"), ("assistant", "Hello dog"), ("user", "Who is lazy?"), ("assistant", "You are.")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    Path("measured.jsonl").write_text(json.dumps(row) + "\n")
    rankwise.train(asked("run", "lora", {}, steps=1))
    (before, _) = rows_of("run", "sample")
    assert before["target"] == "You are."
    assert before["prompt"].startswith("Hello fox") and before["prompt"].endswith("Who is lazy?")
    assert "Hello dog" in before["prompt"]


def test_what_is_drawn_aside_was_never_drawn():
    cpu = torch.device("cpu")
    torch.manual_seed(5)
    wanted = torch.rand(4)
    torch.manual_seed(5)
    with pytest.raises(Stopped), preserve_rng_state(cpu):
        torch.rand(7)
        raise Stopped
    assert torch.equal(torch.rand(4), wanted)
