"""A report says what was recorded, the same bytes each time, of any run however far it came."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rankwise
from kit.report_runs import made_run
from rankwise.commands.report import report
from rankwise.errors import RunError
from rankwise.reporting.charts import MOST_POINTS, loss_chart, smoothed, thinned
from rankwise.reporting.document import Document, facts, folded, matrix, paragraph, table
from rankwise.reporting.figures import Sheet, decades, ticks
from rankwise.reporting.markup import element, lines_of
from rankwise.reporting.quantities import figure as number
from rankwise.runs.directory import RunDirectory
from rankwise.runs.evaluations import evaluation_path, read_evaluation, write_evaluation
from rankwise.runs.measured import Measurement
from rankwise.runs.records import LossRecord
from rankwise.runs.snapshot import RunSnapshot


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def data_of(name="r"):
    return json.loads(report(name).data.read_text())


def words_of(name="r"):
    """What a reader sees, without tags."""
    html = report(name).page.read_text().partition("<body>")[2]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_the_same_bytes_twice_and_by_another_process():
    made_run()
    made = report("r")
    first = made.page.read_bytes(), made.data.read_bytes()
    again = report("runs/r")
    assert (again.page.read_bytes(), again.data.read_bytes()) == first
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-m", "rankwise", "report", str(Path("runs/r").resolve())], check=True,
            capture_output=True,
            env=os.environ | {"PYTHONHASHSEED": seed, "TZ": "Asia/Tokyo",
                              "PYTHONPATH": str(Path(rankwise.__file__).parents[1])},
        )  # fmt: skip
        assert (made.page.read_bytes(), made.data.read_bytes()) == first


def test_a_page_knows_neither_its_place_nor_its_time(tmp_path):
    made_run()
    made = report("r", tmp_path / "elsewhere.html")
    usual = report("r")
    for one, other in ((made.page, usual.page), (made.data, usual.data)):
        assert one.read_bytes() == other.read_bytes()
        assert str(tmp_path).encode() not in one.read_bytes()


def test_page_and_data_have_the_same_sections_in_the_same_order():
    made_run()
    data = data_of()
    html = report("r").page.read_text()
    sections = re.findall(r'<section id="(\w+)">', html)
    assert [*sections, "sha256"] == list(data)[list(data).index("loss") :]
    assert sections == [
        "loss", "scores", "quality", "classes", "forgetting", "samples", "ranks", "data", "cost", "environment"
    ]  # fmt: skip


def test_plain_text_has_aligned_columns_and_neither_drawings_nor_what_is_folded():
    rows = table(("name", "n", ""), [["a", "1", ""], ["long name", "1,000", ""]], words=(0,))
    assert lines_of(rows) == ["name           n", "a              1", "long name  1,000"]
    assert lines_of(facts([("steps", "12"), ("learning rate", "0.1")])) == ["steps          12", "learning rate  0.1"]
    shades = matrix(["a", "bb"], ["a", "bb"], lambda row, column: (str(row + 10 * column), 0.5, "hit")
                    if row <= column else None, "pairs")  # fmt: skip
    assert lines_of(shades) == ["    a  bb", "a   0  10", "bb  -  11"]
    others = folded("All of them", paragraph("hidden")), element("svg", "drawn"), paragraph("seen <b>")
    assert lines_of(*others) == ["All of them (--json has them)", "seen <b>"]


def test_axes_have_round_numbers_and_equal_factors_are_equally_far_apart_on_logarithmic_ones():
    panel = Sheet(100, 100).panel(0, 0, 0, 0)
    panel.upwards(0, 10)
    assert panel.level(5) == pytest.approx(panel.height / 2)
    panel.upwards(1, 100, log=True)
    assert panel.level(10) == pytest.approx(panel.height / 2) and panel.level(1) == 0
    assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10] and ticks(0, 3, 8, integers=True) == [0, 1, 2, 3]
    assert ticks(0.1, 0.9, 4) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert decades(0.5, 300) == [1, 10, 100] and decades(0.5, 8) == pytest.approx([0.5, 1, 2, 5])


def test_nothing_is_written_as_less_than_zero_that_is_zero():
    assert (number(-0.0), number(-0.0, True), number(-0.25)) == ("0.000", "+0.000", "−0.250")
    assert Measurement(value=0.0, low=-1e-9, high=0.5).shown(".3f") == "0.000 (0.000 to 0.500)"


@pytest.mark.parametrize(("loss", "shown"), [(0.000999, "9.99e−04"), (12.5, "12.50"), (999_999.0, "999,999")])
def test_the_last_loss_is_written_whole_beside_its_chart(loss, shown):
    page = loss_chart([], [LossRecord(0, 2.0, 9, 3, "nats"), LossRecord(9, loss, 9, 3, "nats")], "nats")
    assert page.count(f">validation {shown}<") == 2, "wide and narrow"


def test_the_verdict_comes_first_and_says_how_sure_it_is():
    run = made_run()
    made = report("r")
    text = made.page.read_text()
    assert text.index('class="verdict"') < text.index("<section")
    one = read_evaluation(evaluation_path(run, "task")).differences["exact"]
    assert made.verdict == (
        "Better than the base on task: exact 0.600 against 0.200 "
        f"(+0.400, 95 % interval {one.low:+.3f} to {one.high:+.3f}, n = 40); on text that it was "
        "not trained on, 96 % of the most likely next tokens are still the base's (KL 0.020 nats per token, 0.017 to "
        "0.024)."
    )


@pytest.mark.parametrize(
    ("better", "said"),
    [(0.0, "Worse than the base on task"), (0.225, "No significant difference from the base on task")],
)
def test_a_verdict_claims_no_more_than_was_found(better, said):
    made_run(better=better)
    assert report("r").verdict.startswith(said)


def test_better_than_nothing_is_not_called_good():
    run = made_run()
    evaluation = read_evaluation(evaluation_path(run, "task"))
    for metric, right, said in (("exact", 0.039, True), ("exact", 0.5, False), ("rouge_l", 0.039, False)):
        one = evaluation.differences["exact"].model_copy(update={"a": 0.0, "b": right})
        write_evaluation(evaluation_path(run, "task"), evaluation.model_copy(update={"differences": {metric: one}}))
        assert ("n = 40); 96.1 % are still wrong" in report("r").verdict) is said


def test_several_tasks_are_counted_by_their_verdicts():
    run = made_run()
    evaluation = read_evaluation(evaluation_path(run, "task"))
    one = evaluation.differences["exact"]
    for task, verdict in (("worse", "worse"), ("open", "cannot tell"), ("second", "better")):
        changed = evaluation.model_copy(
            update={"task": task, "differences": {"exact": one.model_copy(update={"verdict": verdict})}}
        )
        write_evaluation(evaluation_path(run, task), changed)
    assert report("r").verdict.startswith(
        "Better than the base on 2 of 4 tasks (second, task), worse on 1 (worse), undecided on 1 (open); n = 40; on"
    )


def test_a_task_counts_by_its_answers_before_its_loss():
    run = made_run()
    evaluation = read_evaluation(evaluation_path(run, "task"))
    exact = evaluation.differences["exact"]
    loss = exact.model_copy(update={"verdict": "worse"})
    both = evaluation.model_copy(update={"differences": {"loss": loss, "exact": exact}})
    write_evaluation(evaluation_path(run, "task"), both)
    told = report("r").verdict
    assert told.startswith("Better than the base on task: exact") and "n = 40); worse: loss 0." in told
    unclear = exact.model_copy(update={"verdict": "cannot tell"})
    rouge = exact.model_copy(update={"verdict": "better", "a": 0.25, "b": 0.75})
    three = evaluation.model_copy(update={"differences": {"loss": loss, "exact": unclear, "rouge_l": rouge}})
    write_evaluation(evaluation_path(run, "task"), three)
    told = report("r").verdict
    assert told.startswith("Better than the base on task: rouge_l 0.750 against 0.250")
    assert "; undecided: exact 0.600 against 0.200" in told and "; worse: loss 0.600" in told
    alone = evaluation.model_copy(update={"differences": {"loss": loss}})
    write_evaluation(evaluation_path(run, "task"), alone)
    assert report("r").verdict.startswith("Worse than the base on task: loss")


@pytest.mark.parametrize("count", [1, 15, 60, 400])
def test_a_smoothed_curve_is_the_weighted_mean_around_each_step(count):
    # a constant loss was drawn below itself, and no test noticed
    assert smoothed([2.5] * count) == pytest.approx([2.5] * count)
    values, keep = [(7 * at) % 11 for at in range(count)], 1 - 1 / max(1.0, count / 20)
    for at, found in enumerate(smoothed(values)):
        weights = [keep ** abs(at - other) for other in range(count)]
        wanted = sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)
        assert found == pytest.approx(wanted)


def test_a_thinned_curve_has_its_first_point_and_its_last():
    steps = range(MOST_POINTS + 2)
    xs, ys = thinned((steps, steps))
    assert xs == ys and (xs[0], xs[-1]) == (steps[0], steps[-1]) and len(xs) <= MOST_POINTS


def test_without_an_evaluation_it_says_what_the_loss_did_and_how_to_measure():
    made_run(evaluated=False)
    made = report("r")
    assert made.verdict == (
        "The loss on 10 validation sequences fell, from 2.000 to 0.700 nats per loss token; whether its "
        "answers are better was not measured."
    )
    assert ">validation 0.700<" in made.page.read_text(), "no label is cut"
    assert "rankwise evaluate r" in json.loads(made.data.read_text())["next"]
    assert '<section id="quality">' not in made.page.read_text()


def test_the_loss_that_is_told_is_that_of_the_step_that_was_kept():
    """It was the last one's, also where an earlier step was kept."""
    run = made_run(evaluated=False)
    rows = run.metrics.read_text().splitlines()
    kept = json.dumps(LossRecord(12, 1.2, 99, 10).as_row())
    run.metrics.write_text("\n".join([*rows[:-1], kept, json.dumps(LossRecord(24, 2.5, 99, 10).as_row())]) + "\n")
    manifest = run.manifest()
    assert manifest.results is not None
    results = manifest.results.model_copy(update={"kept_step": 12, "validation_loss_after": 1.2})
    run.write_manifest(manifest.model_copy(update={"results": results}))
    assert "fell, from 2.000 to 1.200 nats per loss token at the selected step 12" in report("r").verdict


def test_where_nothing_was_measured_it_says_just_that():
    made_run(evaluated=False, held_out=False, during=False)
    data = data_of()
    assert data["verdict"].startswith("Nothing was measured on rows that it was not trained on")
    assert "--held-out" in data["next"] and "rankwise evaluate r" in data["next"]


@pytest.mark.parametrize("tracking", [{"keep": "best"}, {"patience": 3}])
def test_rows_that_chose_the_step_are_said_to_flatter(tracking):
    run = made_run(tracking=tracking)
    if "patience" in tracking:
        manifest = run.manifest()
        assert data_of()["remarks"] == data_of_plain_remarks(), "a run that made all its steps was not ended by them"
        ended = manifest.results.model_copy(update={"ended_early": "3 validations without a better validation loss"})
        run.write_manifest(manifest.model_copy(update={"results": ended}))
    assert data_of()["remarks"] == data_of_plain_remarks(), "the task is of other rows"
    evaluation = read_evaluation(evaluation_path(run, "task"))
    write_evaluation(evaluation_path(run, "held-out"), evaluation.model_copy(update={"task": "held-out"}))
    (said,) = [one for one in data_of()["remarks"] if one.startswith("held-out")]
    assert "too optimistic" in said and f"validation.{next(iter(tracking))}" in said


def data_of_plain_remarks():
    made_run("plain")
    remarks = data_of("plain")["remarks"]
    shutil.rmtree("runs/plain")
    return remarks


@pytest.mark.parametrize("status", ["running", "failed", "interrupted"])
def test_a_run_that_was_cut_short_has_a_page_that_says_so(status):
    made_run(status=status, steps=5, evaluated=False)
    words = words_of()
    assert {"running": "not finished", "failed": "failed (problem)", "interrupted": "was interrupted"}[status] in words
    assert "5 steps of 5" in words and "has no results" in words


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_run_of_hardly_any_steps_has_a_page(steps):
    made_run(steps=steps, during=False, evaluated=False, method="lora")
    assert ("The only step had a loss of" in words_of()) == (steps == 1)
    assert len(data_of()["loss"]["loss"]) == steps


def test_a_run_without_metrics_log_and_data_report_has_a_page_that_says_so():
    run = made_run(data_report=False)
    run.metrics.unlink()
    words = words_of()
    assert "No step was recorded." in words and "data_report.json) is missing" in words


def test_another_method_than_ours_needs_no_rank():
    made_run(method="lora")
    data = data_of()
    assert "ranks" not in data and data["environment"]["spec"]["adapter"]["rank"] == 8


def test_a_run_that_was_full_fine_tuning_is_not_held_against_itself():
    run = made_run(method="full")
    manifest = run.manifest()
    results = manifest.results.model_copy(update={"trainable_parameters": manifest.results.total_parameters})
    run.write_manifest(manifest.model_copy(update={"results": results}))
    data = data_of()
    assert data["environment"]["spec"]["adapter"]["method"] == "full"
    assert data["cost"]["by_arithmetic"] is None and "by arithmetic" not in words_of()
    assert "full fine-tuning" in words_of() and "ranks" not in data


def test_full_fine_tuning_is_told_by_arithmetic_with_its_formula():
    made_run()
    found = data_of()["cost"]["by_arithmetic"]
    assert found["full_fine_tuning_bytes"] == 16 * 134_515_008
    assert found["this_run_bytes"] == 2 * 134_515_008 + 16 * 1_200_000
    assert "16 bytes" in found["formula"]
    assert "calculated" in words_of() and "not measured" in words_of()
    assert found["time"] is None, "there is no record of AdaLoRA's"


def test_the_time_of_full_fine_tuning_is_a_record_and_called_one():
    made_run(method="lora")
    said = data_of()["cost"]["by_arithmetic"]["time"]
    assert "In the benchmark of docs/speed.md" in said and "2.5 times" in said and said in words_of()


def test_what_cannot_be_seen_is_plain_text_in_the_title():
    made = Document(title="a\u202eb", over="page", verdict="none").as_html().decode()
    assert "<title>aU+202Eb \u00b7 page</title>" in made and '<span class="unseen">U+202E</span>' in made


def test_numbers_of_the_page_are_those_of_the_run():
    run = made_run()
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    data = data_of()
    assert data["loss"]["loss"] == [row["loss"] for row in rows if row["kind"] == "step"]
    assert data["loss"]["validation"] == [row for row in rows if row["kind"] == "validation"]
    assert data["scores"] == [row for row in rows if row["kind"] == "score"]
    assert data["samples"]["training"] == [row for row in rows if row["kind"] == "sample"]
    assert data["ranks"]["ranks"] == [row for row in rows if row["kind"] == "ranks"][-1]["ranks"]
    assert data["cost"]["results"] == run.manifest().results.model_dump(mode="json")
    assert data["data"]["data_report"] == RunSnapshot.of(run).recorded_data.model_dump(mode="json")
    evaluation = read_evaluation(evaluation_path(run, "task"))
    exact = evaluation.differences["exact"]
    assert data["quality"][0]["differences"]["exact"] == exact.model_dump() | {"undecided": exact.undecided}
    assert "sums" not in json.dumps(data["quality"])


def test_many_samples_are_there_and_all_but_the_first_are_folded():
    run = made_run(during=False)
    path = evaluation_path(run, "task")
    evaluation = read_evaluation(path)
    many = [evaluation.samples[0].model_copy(update={"prompt": f"prompt-{n}."}) for n in range(9)]
    write_evaluation(path, evaluation.model_copy(update={"samples": many}))
    html = report("r").page.read_text()
    assert "5 more" in html and all(f"prompt-{n}." in html for n in range(9))
    assert html.index("prompt-3.") < html.index("5 more") < html.index("prompt-4.")


def test_samples_stand_side_by_side_with_what_was_wanted():
    made_run(said=lambda where: "the same" if where in ("target", "after") else where)
    html = report("r").page.read_text()
    assert html.index(">before<") < html.index(">the same<", html.index(">before<"))
    assert html.count("matches the target") == 1


def test_a_loss_that_is_no_number_is_left_out_of_the_picture_and_null_in_the_data():
    run = made_run(evaluated=False)
    lines = run.metrics.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if '"kind": "step"' in line)
    lines[first] = json.dumps(json.loads(lines[first]) | {"loss": float("nan")})
    run.metrics.write_text("\n".join(lines) + "\n")
    assert data_of()["loss"]["loss"][0] is None


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("manifest.json", "{", "manifest.json is damaged"),
        ("config.json", "[]", "config.json is damaged"),
        ("data_report.json", "{}", "data_report.json is damaged"),
        ("metrics.jsonl", '{"kind": "step", "step": "x"}\n', "row 0 of kind step"),
        ("metrics.jsonl", '{"kind": "sample", "step": 1, "prompt": "\\ud800"}\n', "kind sample is not text"),
        ("metrics.jsonl", 'no\n{"kind": "step"}\n', "metrics.jsonl:1"),
        ("evaluations/task.json", "{}", "task.json is damaged"),
        ("strength.json", "7", "strength.json is damaged"),
    ],
)
def test_a_damaged_file_is_named(file, content, said):
    run = made_run()
    (run.folder / file).write_text(content)
    with pytest.raises(RunError, match=re.escape(said)):
        report("r")
    assert not (run.folder / "report.html").exists()


def test_a_missing_run_is_an_error_that_names_the_near_one():
    made_run("orders")
    with pytest.raises(RunError, match='no run "order"'):
        report("order")


@pytest.mark.parametrize("name", ["report.txt", "report", "no/where.html", "precious.html", "other.html"])
def test_only_an_earlier_report_is_written_over(name, tmp_path):
    made_run()
    (tmp_path / "precious.html").write_text("<p>mine</p>")
    (tmp_path / "other.json").write_text('{"mine": 1}')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RunError):
        report("r", name)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_begun_again_forgets_the_report_of_its_first_try():
    run = made_run(status="interrupted")
    report("r")
    with run.claimed(restart=True) as claimed:
        claimed.begin(RunSnapshot.of(run).experiment.model_dump(mode="json"))
    assert not (run.folder / "report.html").exists() and not (run.folder / "report.json").exists()
    assert RunDirectory.named("r").folder.is_dir()


def test_a_long_run_has_a_page_of_ordinary_size():
    made_run(steps=6000, method="lora")
    made = report("r")
    assert made.page.stat().st_size < 500_000
    assert len(json.loads(made.data.read_text())["loss"]["loss"]) == 6000
