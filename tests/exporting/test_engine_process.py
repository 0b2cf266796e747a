"""Whatever an engine's process does becomes a reply or one sentence, and a server is compared by its address."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kit import planted
from kit.command import printed, rankwise
from kit.openai_server import serving
from rankwise.exporting import engine_process
from rankwise.exporting.agreement import compare, tolerance_of
from rankwise.exporting.engine_process import (
    EngineFailure,
    EngineReplies,
    EngineReply,
    ask,
    engines_for,
    interpreters,
)
from rankwise.exporting.engines.engine import Package, scored
from rankwise.exporting.engines.openai_server import SERVER
from rankwise.exporting.engines.table import ENGINES
from rankwise.exporting.reference import Reference, ReferenceQuestion
from rankwise.exporting.verification import Verification

REQUEST = {"export": "x", "format": "merged", "questions": [{"prompt": "a"}, {"prompt": "b"}]}
GOOD = {"engine": "toy", "version": "1", "replies": [{"answer_ids": [1]}, {"answer": "b", "log_probabilities": [0]}]}


def asked(tmp_path, program, seconds=30.0):
    """A toy's program in the place of what runs an engine's."""
    script = tmp_path / "child.py"
    script.write_text(f"import json, os, sys, time, signal\nrequest = json.load(sys.stdin)\n{program}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_process, "CHILD", script)
        return ask(Package("toy", "toy", ("json",)), sys.executable, REQUEST, seconds)


def test_a_reply_is_read(tmp_path):
    replies = asked(
        tmp_path, f"assert request['threads'] >= 1; print('noise', file=sys.stderr); print(json.dumps({GOOD}))"
    )
    assert isinstance(replies, EngineReplies), replies
    assert [one.answer_ids for one in replies.replies] == [[1], None] and replies.replies[1].log_probabilities == [0.0]


@pytest.mark.parametrize(
    ("program", "why", "refused"),
    [
        ("print(json.dumps({'error': 'E: not\\nread.'}))", "toy says: E: not read", True),
        ("print('Loading...'); print('{}')", "toy ended without a reply ({})", True),
        ("raise RuntimeError('it broke')", "toy ended without a reply (RuntimeError: it broke)", True),
        ("sys.exit(3)", "toy ended without a reply (nothing was printed)", True),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "toy crashed (signal 11)", True),
        ("os.kill(os.getpid(), signal.SIGKILL)", "toy was ended by the system, perhaps for want of memory", False),
        ("print('[1, 2]')", "toy gave a reply that is not one", True),
        (f"x = {GOOD}; x['replies'] = x['replies'][:1]; print(json.dumps(x))", "toy answered 1 of 2 questions", True),
        (f"x = {GOOD}; x['replies'][0]['answer_ids'] = ['1']; print(json.dumps(x))", "is not one (replies.0.", True),
        (f"x = {GOOD}; x['replies'][1]['outputs'] = [1e999]; print(json.dumps(x))", "is not one (replies.1", True),
        ("print('\\x1b[2J' * 9)", "toy ended without a reply", True),
    ],
)  # fmt: skip
def test_anything_else_is_one_sentence(tmp_path, program, why, refused):
    failure = asked(tmp_path, program)
    assert isinstance(failure, EngineFailure), failure
    assert why in failure.why and failure.refused == refused
    assert len(failure.why) < 500 and failure.why.isprintable()


def test_an_engine_that_does_not_end_is_ended(tmp_path):
    failure = asked(tmp_path, "time.sleep(60)", 1.0)
    assert isinstance(failure, EngineFailure) and failure.why == "toy did not finish in 1 s" and not failure.refused


def test_a_server_that_is_not_there_is_told_in_words_and_is_not_the_exports_fault():
    failure = ask(SERVER, sys.executable, REQUEST | {"export": "http://127.0.0.1:9/v1"})
    assert isinstance(failure, EngineFailure) and not failure.refused
    assert failure.why.startswith("http://127.0.0.1:9 cannot be reached (") and "Error:" not in failure.why


def test_what_an_engine_says_in_words_has_no_error_s_name(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for error, why in (
        ("RuntimeError('no model')", "toy says: no model"),
        ("KeyError('x')", "toy says: KeyError: 'x'"),
    ):
        (tmp_path / "toy.py").write_text(f"def answer(request): raise {error}\n")
        failure = ask(Package("toy", "toy", ("json",)), sys.executable, REQUEST)
        assert isinstance(failure, EngineFailure) and failure.why == why and failure.refused


def test_interpreters_come_from_the_flag_the_environment_and_ourselves(monkeypatch):
    monkeypatch.delenv("RANKWISE_ENGINES", raising=False)
    assert interpreters() == [sys.executable]
    monkeypatch.setenv("RANKWISE_ENGINES", os.pathsep.join(["/a/python", "/b/python"]))
    assert interpreters([Path("/bin/sh")]) == ["/bin/sh", "/a/python", "/b/python", sys.executable]
    monkeypatch.setenv("RANKWISE_ENGINES", "")
    assert interpreters() == []


def test_an_engine_is_at_hand_where_an_interpreter_can_import_it():
    (found,) = engines_for("merged", ["/nowhere/python", sys.executable])
    assert found[0].name == "transformers" and found[1] == sys.executable
    assert engines_for("merged", []) == engines_for("merged", ["/bin/sh"]) == []


def test_an_environment_that_lacks_a_part_of_an_engine_does_not_have_it(tmp_path):
    # mlx-lm's environment has transformers for its tokenizers, and no torch
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho transformers mlx_lm\n")
    python.chmod(0o755)
    assert [one.name for one, _ in engines_for("merged", [str(python)])] == ["mlx-lm"]


NO_NODE = "node is not installed here"


def test_every_engine_is_asked_where_no_package_is_installed():
    """Where there is no engine either, it is the engine that is missed."""
    for package in [one.package for one in ENGINES if one.package is not None]:
        words = [sys.executable, "-I", "-S", str(engine_process.CHILD), package.file]
        done = subprocess.run(words, input=json.dumps(REQUEST), capture_output=True, text=True, check=True)
        missing = json.loads(done.stdout)["error"].removeprefix("ModuleNotFoundError: No module named ")
        assert missing in ("'torch'", "'mlx'", "'llama_cpp'", "'openvino_genai'", "'numpy'", NO_NODE), package


@pytest.mark.parametrize(
    ("given", "room", "likeliest", "written"),
    [
        ([7, 3, 2], 11, [7, 3, 2, 5], [7, 3, 2]),  # it stops at 2
        ([7, 3, 4], 11, [7, 3, 4, 5], [7, 3, 4, 5]),
        ([7, 3, 4], 3, [7, 3, 4, 5], [7, 3, 4]),  # cut where ours was
        ([7, 3, 2], 11, [7, 1, 2, 5], [7, 1]),
        ([], 1, [6], [6]),
    ],
)
def test_a_greedy_answer_is_read_from_the_logits_of_the_given_one(given, room, likeliest, written):
    rows = torch.randn(len(likeliest), 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows[range(len(likeliest)), likeliest] = 5.0
    found = scored(rows, {"answer_ids": given, "max_new_tokens": room}, [2])
    assert found["answer_ids"] == written
    pairs = list(zip(rows, given, strict=False))
    assert found["logits"] == [float(row[token]) for row, token in pairs]
    own = [float(row.log_softmax(-1)[token]) for row, token in pairs]
    assert found["log_probabilities"] == pytest.approx(own, abs=1e-12)


def question(ids, margins=(9.0, 9.0, 9.0), *, ended=True):
    scores, logits = tuple(-0.5 for _ in ids), tuple(float(one) for one in ids)
    return ReferenceQuestion(
        "p", (5, 6), "abc"[: len(ids) - 1], tuple(ids), ended, ended, scores, tuple(margins), (1, 2, 3), logits
    )


def verdict(reply, asked=None, **reference):
    one = asked or question((11, 12, 2))
    ours = Reference("one", (one,), end_ids=(2,), change=1.0, **reference)
    return compare(ours, EngineReplies(engine="toy", version="1", replies=[EngineReply(**reply)]))


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ({"answer_ids": [11, 12, 2]}, None),
        ({"answer_ids": [11, 12]}, None),  # the end token left out
        ({"answer": " ab"}, None),
        ({"answer_ids": [11, 12, 7, 8]}, "1 of 1 answers do not stop where ours end"),
        ({"answer_ids": [11, 12, 2, 8]}, "1 of 1 answers do not stop where ours end"),
        ({"answer_ids": [11]}, "1 of 1 answers end too early"),
        ({"answer_ids": [11, 13, 2]}, "1 of 1 answers differ"),
        ({"answer": "xb"}, "1 of 1 answers differ"),
        ({"prompt_ids": [5, 7]}, "its tokenizer gives other token ids for 1 of 1 prompts"),
        ({"log_probabilities": [-0.5, -0.5, -0.4]}, "log-probabilities differ by 0.033 on average and 0.1 at most"),
        ({"log_probabilities": [-0.5]}, "log-probabilities differ by inf"),
    ],
)
def test_each_difference_has_its_reason(reply, why):
    found = verdict(reply)
    assert found.status == ("right" if why is None else "wrong") and (why is None or why in found.why), found


@pytest.mark.parametrize(
    ("logits", "largest"), [(None, None), ([11, 12], None), ([11, 12, 2], 0), ([13, 14, 4], 2), ([11, 11.5, 2], 0.5)]
)
def test_the_largest_difference_of_a_logit_is_told_and_decides_nothing(logits, largest):
    logits = None if logits is None else [float(one) for one in logits]
    found = verdict({"log_probabilities": [-0.5, -0.5, -0.5], "logits": logits})
    assert found.status == "right" and found.summary()["max_logit_difference"] == largest
    assert Verification(verdicts=(found,)).summary()["max_logit_difference"] == largest


def test_a_near_tie_is_no_difference_and_is_counted():
    near = question((11, 12, 2), margins=(9.0, 1e-4, 9.0))
    found = verdict({"answer_ids": [11, 13, 2]}, near)
    assert found.status == "right" and (found.figures.answers_equal, found.figures.answers_near) == (0, 1)


def test_an_adapter_that_changes_little_must_come_closer():
    assert tolerance_of("float32", 1.0).mean == 1e-4 and tolerance_of("float32", 2e-4).mean == 5e-5
    assert tolerance_of("float32", 1e-9).mean == 2e-5 and tolerance_of("bfloat16", 1e-9).mean == 0.1


def test_a_server_is_compared_by_its_address(library, tmp_path, monkeypatch):
    monkeypatch.chdir(library.lay_out(tmp_path / "home", "lora"))
    assert rankwise("export", "lora", "--to", "out", "--format", "merged", "--no-verify").exit_code == 0
    with serving(Path("out")) as address:
        told = printed("export", "lora", "--to", "out", "--format", "merged", "--verify", address)["engines"]["server"]
        assert told["status"] == "right" and told["version"] == f"{address}, model tiny"
        assert told["answers_equal"] == told["questions"] and told["mean_difference"] < 1e-5
        assert told["max_logit_difference"] is None, "a server gives no logits"
    planted.scale_doubled(Path("out"), Path("tiny-llama"), Path())
    planted.other_template(Path("out"), Path("tiny-llama"), Path())
    with serving(Path("out")) as address:
        result = rankwise("export", "lora", "--to", "out", "--format", "merged", "--verify", f"{address}/v1")
        assert result.exit_code == 1 and "does not answer as" in result.stderr, result.output
        assert "renders conversations differently" in result.stderr and Path("out").exists()
    result = rankwise("export", "lora", "--to", "out", "--format", "merged", "--verify", address)
    assert result.exit_code == 1 and "cannot be reached" in result.stderr
