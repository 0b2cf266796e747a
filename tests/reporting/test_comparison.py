"""Comparing is symmetric, a run is not told from itself, and what cannot be compared is set apart and said to be."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rankwise
from kit import command
from kit.report_runs import made_run
from kit.sampling import draws
from rankwise.commands.compare import REVERSED, _difference, compare
from rankwise.commands.report import report
from rankwise.errors import RunError
from rankwise.evaluation.intervals import scores
from rankwise.runs.evaluations import ModelScores, differing, evaluation_path, read_evaluation, write_evaluation
from rankwise.runs.snapshot import open_candidate

HITS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40)


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def one(a, b):
    (found,) = compare([a, b]).comparisons
    return found


def turned(found):
    return {
        "a": found.b, "b": found.a, "difference": -found.difference, "low": -found.high, "high": -found.low,
        "p": found.p, "n": found.n, "verdict": REVERSED[found.verdict],
    }  # fmt: skip


@settings(max_examples=draws(60), deadline=None, derandomize=True)
@given(HITS)
def test_turned_round_every_number_is_turned_round(pairs):
    a, b = ([[float(pair[side]), 1.0] for pair in pairs] for side in (0, 1))
    assert _difference("exact", b, a).model_dump() == turned(_difference("exact", a, b))


@pytest.mark.parametrize("metric", ["exact", "loss"])
def test_a_comparison_of_runs_is_symmetric(metric):
    for name, better in (("a", 0.6), ("b", 0.3)):
        run = made_run(name, better=better)
        path = evaluation_path(run, "task")
        evaluation = read_evaluation(path)
        sums = [[2.5 - better + 0.01 * (item % 7), 2.0] for item in range(evaluation.n)]
        tuned = ModelScores(scores={"loss": scores("loss", sums), **evaluation.tuned.scores}, seconds=1.0)
        write_evaluation(path, evaluation.model_copy(update={"tuned": tuned}))
    there, back = (one(*names).tasks[0].differences[metric] for names in ("ab", "ba"))
    assert back.model_dump() == turned(there)
    assert there.verdict == "worse" and there.difference != 0
    assert there.difference == there.b - there.a


def test_a_run_is_not_told_from_itself():
    made_run("a")
    found = one("a", "a")
    same = found.tasks[0].differences["exact"]
    assert (same.difference, same.verdict) == (0, "cannot tell") and same.low <= 0 <= same.high
    assert found.forgetting.verdict == "cannot tell"
    assert not (found.settings or found.data or found.base_model or found.cost or found.made_with)


def test_other_items_are_shown_and_not_compared():
    made_run("a")
    made_run("b", items="b" * 64)
    task = one("a", "b").tasks[0]
    assert task.differences == {} and task.a and task.b and "the items or their order differ" in task.unpaired
    html = report(["a", "b"], "out.html").page.read_text()
    assert "not compared" in html and "the items or their order differ" in html


@pytest.mark.parametrize(
    ("other", "said"),
    [({"text_sha256": "cd" * 32}, "texts differ"), ({"fingerprint": "beef"}, "base models differ"),
     ({"evaluated": False}, "only measured for a"), ({"kept": {"dtype": "bfloat16"}}, "measured in"),
     ({"kept": {"base": "beef"}}, "base models differ")],
)  # fmt: skip
def test_what_was_kept_is_compared_on_one_text_and_one_base_alone(other, said):
    made_run("a")
    made_run("b", **other)
    for names in (("a", "b"), ("b", "a")):
        found = one(*names).forgetting
        assert found.verdict is None and said in found.incomparable


def blocks(kl, n=16):
    """Of unlike blocks, of which each is moved by so many times its own share."""
    return {"kl": [(kl * (1 + block), 500) for block in range(n)], "delta_nll": [(0.1, 500)] * n}


@pytest.mark.parametrize(("other", "verdict"), [(0.9, "better"), (1.0, "cannot tell"), (1.1, "worse")])
def test_what_was_kept_is_compared_block_by_block(other, verdict):
    """By their own intervals, which are wide where blocks differ, these were not to be told apart."""
    made_run("a", kept={"sums": blocks(1.0)})
    made_run("b", kept={"sums": blocks(other)})
    found = one("a", "b").forgetting
    assert found.verdict == verdict and found.a.sums is None
    moved = found.differences["kl"]
    assert moved.difference == pytest.approx((other - 1) * 8.5 / 500) and moved.low <= moved.difference <= moved.high
    assert found.differences["delta_nll"].difference == 0
    back = one("b", "a").forgetting.differences["kl"]
    assert (back.low, back.high) == (-moved.high, -moved.low)
    made = report(["a", "b"], "out.html")
    moved_from_base = [word for word in ("less", "more") if f"it moved {word} from the base" in made.verdict]
    assert moved_from_base == {"better": ["less"], "worse": ["more"]}.get(verdict, [])
    html = made.page.read_text()
    assert "difference of KL" in html and "delta_nll" not in html.split("<h2>Forgetting")[0]


def test_what_differs_in_settings_data_base_and_cost_is_listed_and_nothing_else():
    made_run("a", method="lora", steps=10, fingerprint="f00d")
    made_run("b", method="adalora", steps=12, fingerprint="beef", path="other.jsonl")
    found = one("a", "b")
    assert {"adapter.method", "adapter.rank", "data.path"} <= {each.key for each in found.settings}
    assert "model.name" not in {each.key for each in found.settings}
    method = next(each for each in found.settings if each.key == "adapter.method")
    assert (method.a, method.b) == ("lora", "adalora")
    assert [each.key for each in found.data] == ["path"]
    assert [each.key for each in found.base_model] == ["fingerprint"]
    assert [each.key for each in found.cost] == ["steps"]


def test_the_terminal_rounds_and_leaves_out_what_only_one_method_has():
    for name, rate, method in (("a", 0.1 + 0.2, "lora"), ("b", 0.0007, "adalora")):
        run = made_run(name, method=method)
        found = run.manifest()
        costs = found.results.model_copy(
            update={"loss": 1 / 3 + rate, "peak_rss_bytes": 1_745_829_888 + int(rate * 1e9)}
        )
        run.write_manifest(found.model_copy(update={"results": costs}))
    printed = command.rankwise("compare", "a", "b").stdout
    assert re.search("loss +0.633 +0.334", printed) and re.search("peak memory +2.05 GB +1.75 GB", printed)
    assert "1745829888" not in printed and "0.33403333" not in printed
    assert "Settings that only some runs have (--json has them)" in printed
    listed = {one.key for one in compare(["a", "b"]).comparisons[0].settings if one.one_sided}
    assert listed and not any(f"{key} " in printed for key in listed)


def test_of_one_text_the_blocks_that_both_needed_are_compared():
    """One stopped at the first look, the other went on."""
    whole = [(float(at % 5) + 1, 10.0) for at in range(32)]
    runs = {"a": list(range(32)), "b": list(range(0, 32, 4))}
    for name, numbers in runs.items():
        run = made_run(name)
        rows = [(whole[at][0] + (name == "b"), 10.0) for at in numbers]
        file = run.folder / "evaluations/task.json"
        stored = json.loads(file.read_text())
        stored["forgetting"] |= {"blocks": len(numbers), "sums": {"kl": rows, "delta_nll": rows,
                                "numbers": None if len(numbers) == 32 else numbers}}  # fmt: skip
        file.write_text(json.dumps(stored))
    kept = compare(["a", "b"]).comparisons[0].forgetting
    assert kept.differences["kl"].n == 8 and kept.differences["kl"].difference == pytest.approx(0.1)
    assert kept.verdict == "worse"


def test_differing_finds_each_leaf_once():
    found = differing({"x": {"y": 1, "z": 2}, "same": 0}, {"x": {"y": 3}, "same": 0, "new": None, "w": 4})
    assert [(each.key, each.a, each.b) for each in found] == [("x.y", 1, 3), ("x.z", 2, None), ("w", None, 4)]


def test_a_file_of_an_evaluation_stands_for_a_run():
    run = made_run("a", better=0.2)
    made_run("b")
    shutil.copy(evaluation_path(run, "task"), "alone.json")
    found = one("alone.json", "b")
    assert found.a == "alone" and found.tasks[0].differences["exact"].verdict == "better"
    assert found.settings == [] and "name its run" in found.forgetting.incomparable
    assert "alone" in report(["alone.json", "b"], "out.html").page.read_text()


@pytest.mark.parametrize(
    ("bases", "said"),
    [(("f00d", "f00d"), None), (("f00d", "beef"), "base models differ"), ((None, "f00d"), "evaluate that one again")],
)
def test_what_whole_models_kept_is_compared_where_their_bases_are_one(bases, said):
    """Two evaluations that stand alone were once told apart by the models that were evaluated, not by their bases."""
    for name, base in zip("ab", bases, strict=True):
        run = made_run(name, kept={"base": base, "dtype": "float32"})
        evaluation = read_evaluation(evaluation_path(run, "task"))
        write_evaluation(
            Path(f"{name}.json"), evaluation.model_copy(update={"settings": {"fingerprint": f"own {name}"}})
        )
    for names in (("a.json", "b.json"), ("b.json", "a.json")):
        found = one(*names).forgetting
        assert (found.verdict is None) == (said is not None) and (said or "") in (found.incomparable or "")


def test_what_was_kept_is_as_old_as_its_measurement():
    """Carried into an evaluation of today it would else stand before what was measured yesterday."""
    run = made_run("a")
    evaluation = read_evaluation(evaluation_path(run, "task"))
    for task, made, sha256 in (("carried", "2026-01-01", "cd" * 32), ("late", None, "ef" * 32)):
        kept = evaluation.forgetting.model_copy(update={"sha256": sha256, "created": made})
        when = {"carried": "2026-03-03", "late": "2026-02-02"}[task]
        write_evaluation(
            evaluation_path(run, task),
            evaluation.model_copy(update={"task": task, "forgetting": kept, "created": when}),
        )
    assert open_candidate("a").forgetting.sha256 == "ef" * 32


def test_tasks_of_one_side_alone_are_named():
    run = made_run("a")
    made_run("b")
    evaluation = read_evaluation(evaluation_path(run, "task"))
    write_evaluation(evaluation_path(run, "more"), evaluation.model_copy(update={"task": "more"}))
    assert one("a", "b").only_a == ["more"] == one("b", "a").only_b


def test_two_runs_of_one_name_are_told_apart_by_their_folders(tmp_path, monkeypatch):
    for place, steps in (("one", 5), ("two", 7)):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        made_run("r", steps=steps, better=steps / 10)
    monkeypatch.chdir(tmp_path)
    made = report(["one/runs/r", "two/runs/r"])
    assert made.page.name == "against-two-runs-r.html"
    data = json.loads(made.data.read_text())
    assert [len(data["loss"][f"{place}/runs/r"]) for place in ("one", "two")] == [5, 7]
    assert [data["cost"][f"{place}/runs/r"]["steps"] for place in ("one", "two")] == [5, 7]
    assert "two/runs/r is better than one/runs/r" in made.verdict


def test_one_run_named_twice_is_numbered():
    made_run("a")
    assert (one("a", "runs/a").a, one("a", "runs/a").b) == ("a", "a (2)")


def test_what_was_kept_is_compared_on_the_last_text_that_both_have():
    for name, text in (("a", "ab" * 32), ("b", "cd" * 32)):
        run = made_run(name, text_sha256=text)
        evaluation = read_evaluation(evaluation_path(run, "task"))
        other = evaluation.forgetting.model_copy(update={"sha256": "ef" * 32, "text": "shared", "kl": 0.5})
        changed = {"task": "early", "forgetting": other, "created": "2025-01-01T00:00:00+00:00"}
        write_evaluation(evaluation_path(run, "early"), evaluation.model_copy(update=changed))
    found = one("a", "b").forgetting
    assert (found.a.text, found.b.text, found.verdict) == ("shared", "shared", "cannot tell")
    assert open_candidate("a").forgetting.sha256 == "ab" * 32, "the last that was measured, whatever its file is called"
    assert "shared" in report(["a", "b"]).page.read_text()


def test_other_settings_of_the_asking_are_told():
    run = made_run("a")
    made_run("b")
    path = evaluation_path(run, "task")
    write_evaluation(path, read_evaluation(path).model_copy(update={"settings": {"max_new_tokens": 9}}))
    assert "max_new_tokens" in {each.key for each in one("a", "b").tasks[0].settings}


@pytest.mark.parametrize(
    ("metric", "a", "b", "said"),
    [
        ("loss", {"tokenizer": "x"}, {"tokenizer": "y"}, "tokenizer"),
        ("loss", {"template": "x"}, {"template": "y"}, "chat template"),
        ("loss", {"system": "x"}, {}, "system message"),
        ("loss", {"chat": False}, {}, "use of the template"),
        ("loss", {"chat": False, "template": "x"}, {"chat": False, "template": "y"}, None),
        ("loss", {"max_new_tokens": 9}, {}, None),
        ("exact", {"tokenizer": "x", "template": "x", "system": "x"}, {}, None),
        ("exact", {"max_new_tokens": 9}, {}, "limit of new tokens"),
        ("exact", {"max_new_tokens": 128}, {}, None),
        ("exact", {"filter": "x"}, {"filter": "y"}, "filter"),
        ("regex", {"pattern": "x"}, {"pattern": "y"}, "pattern"),
        ("accuracy", {"tokenizer": "x", "template": "x", "max_new_tokens": 9}, {}, None),
    ],
)
def test_of_equal_items_no_number_is_taken_from_one_of_something_else(metric, a, b, said):
    """Nats per token of one tokenizer were once called better than those of another."""
    for name, asked in (("a", a), ("b", b)):
        run = made_run(name)
        path = evaluation_path(run, "task")
        evaluation = read_evaluation(path)
        side = ModelScores(scores={metric: scores(metric, [[1.0, 1.0]] * evaluation.n)}, seconds=1.0)
        write_evaluation(path, evaluation.model_copy(update={"tuned": side, "settings": asked}))
    for names in (("a", "b"), ("b", "a")):
        task = one(*names).tasks[0]
        assert task.unpaired is None and set(task.differences) == ({metric} if said is None else set())
        assert set(task.set_apart) == (set() if said is None else {metric})
        assert (said or "") in task.set_apart.get(metric, "")
    told = report(["a", "b"], "out.html")
    assert (f"{metric} is not compared: the two evaluations differ in" in told.page.read_text()) == (said is not None)
    assert ("can be called better" in told.verdict) == (said is not None)
    printed = command.rankwise("compare", "a", "b").stdout
    assert (f"task: {metric} is not compared" in printed) == (said is not None)


def test_a_copy_beside_the_evaluation_of_a_task_does_not_take_its_place():
    run = made_run("a")
    path = evaluation_path(run, "task")
    for copy in ("a-copy", "z-copy"):
        other = read_evaluation(path).model_copy(update={"n": 7, "data": copy})
        write_evaluation(path.with_name(f"{copy}.json"), other)
    assert open_candidate("a").evaluations["task"].n == 40


def no_positions(stored):
    stored["forgetting"]["sums"] = blocks(1.0) | {"kl": [(1.0, 0.0)] * 16}


def a_block_less(stored):
    stored["forgetting"]["sums"] = blocks(1.0, n=15)


def an_item_less(stored):
    stored["tuned"]["scores"]["exact"]["sums"].pop()


def of(metric, row):
    def change(stored):
        exact = stored["tuned"]["scores"].pop("exact")
        stored["tuned"]["scores"][metric] = exact | {"sums": [row] * stored["n"]}

    return change


DAMAGES = {
    "a block without positions": (no_positions, "damaged"), "fewer blocks than there are": (a_block_less, "damaged"),
    "fewer sums than items": (an_item_less, "needs 40 items with valid sums, but has 39"),
    "sums that no text has": (of("bleu", [3.0, 3.0, *[-1.0] * 4, *[1.0] * 4]), "damaged"),
    **{f"sums of {row}": (of("exact", row), "damaged") for row in ([], [1.0], [1e308, 1.0], [1.0, -1e300])},
    "a loss of no token": (of("loss", [1e100, 0.0]), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_sums_that_nothing_can_have_are_told_as_damage(damage):
    """Some ended in a traceback."""
    change, said = DAMAGES[damage]
    for name in "ab":
        path = evaluation_path(made_run(name, kept={"sums": blocks(1.0)}), "task")
        stored = json.loads(path.read_text())
        change(stored)
        path.write_text(json.dumps(stored))
    for refused in (lambda: compare(["a", "b"]), lambda: report(["a", "b"], "out.html")):
        with pytest.raises(RunError, match=said):
            refused()


@pytest.mark.parametrize("names", [[], ["a"], ["a", "none"]])
def test_two_runs_are_needed(names):
    made_run("a")
    with pytest.raises(RunError):
        compare(names)


def test_three_runs_are_held_against_the_first_and_their_page_says_so():
    for name, better in (("a", 0.3), ("b", 0.7), ("c", 0.3)):
        made_run(name, better=better)
    found = rankwise.compare(["a", "b", "c"]).comparisons
    assert [(each.a, each.b) for each in found] == [("a", "b"), ("a", "c")]
    made = rankwise.report(["a", "b", "c"])
    assert made.page.name == "against-b-c.html" and made.page.parent.name == "a"
    assert made.verdict == (
        "b is better than a on task; no difference between c and a is significant on task; each is compared "
        "with the first, without correction for multiple comparisons."
    )
    first = made.page.read_bytes(), made.data.read_bytes()
    again = rankwise.report(["a", "b", "c"])
    assert (again.page.read_bytes(), again.data.read_bytes()) == first
    data = json.loads(first[1])
    assert re.findall(r'<section id="(\w+)">', first[0].decode()) == [key for key in data if key in SECTIONS]
    assert len(data["comparisons"]) == 2


SECTIONS = {"comparisons", "forgetting", "loss", "cost", "settings", "data", "base_model", "environment"}


def test_runs_that_were_not_evaluated_are_called_neither_better_nor_worse():
    made_run("a", evaluated=False)
    made_run("b", evaluated=False, status="interrupted")
    made = report(["a", "b"])
    assert "neither can be called better" in made.verdict
    assert "b is not finished" in made.page.read_text()
