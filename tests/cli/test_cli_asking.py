"""`rankwise generate` and `rankwise chat`: the right model answers, remembers what it should, says no more."""

from __future__ import annotations

import contextlib
import json

import pytest
from transformers import AutoTokenizer

from kit.command import done, printed, rankwise

QUESTION = "What is the capital of land 3?"
SHORT = ("--max-new-tokens", "12")


def train(model, run, rows):
    with open(f"{run}.jsonl", "w") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--rank", 4, "--learning-rate", 0.05, "--steps", 25, "--batch-size", 4)
    done("train", "--model", model, "--data", f"{run}.jsonl", "--run", run, *words)


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_folder):
    """Two finished runs: "plain", and "polite" whose rows share a system message."""
    with contextlib.chdir(tmp_path_factory.mktemp("asking")) as _:
        pairs = [(f"What is the capital of land {n}?", "the the quick quick") for n in range(8)]
        train(tiny_folder, "plain", [{"prompt": asked, "completion": told} for asked, told in pairs])
        polite = [
            [("system", "Be brief."), ("user", asked), ("assistant", told)] for asked, told in pairs
        ]  # fmt: skip
        train(
            tiny_folder,
            "polite",
            [{"messages": [{"role": role, "content": text} for role, text in turns]} for turns in polite],
        )
        yield


@pytest.fixture(scope="module")
def both(home):
    return printed("generate", "plain", "--prompt", QUESTION, "--both", *SHORT)


def test_json_of_both_has_an_answer_a_count_a_reason_and_a_time_for_each_side(both):
    sides = [f"{side}{fact}" for side in ("answer", "base_answer") for fact in ("", "_tokens", "_stopped", "_seconds")]
    assert set(both) == {"prompt", *sides}
    assert both["prompt"] == QUESTION
    assert {both["answer_stopped"], both["base_answer_stopped"]} <= {"end", "length"}
    assert 0 < both["base_answer_tokens"] <= 12 and 0 < both["answer_tokens"] <= 12


@pytest.mark.parametrize(("flags", "side"), [((), "answer"), (("--base",), "base_answer")])
def test_one_side_alone_says_what_it_says_beside_the_other(both, flags, side):
    alone = printed("generate", "plain", "--prompt", QUESTION, *flags, *SHORT)
    assert set(alone) == {"prompt", *(f"{side}{fact}" for fact in ("", "_tokens", "_stopped", "_seconds"))}
    assert alone[side] == both[side]


@pytest.mark.parametrize(("flags", "side"), [((), "answer"), (("--base",), "base_answer")])
def test_a_pipe_gets_the_answer_and_nothing_else(both, flags, side):
    result = rankwise("generate", "plain", "--prompt", QUESTION, *flags, *SHORT)
    assert (result.exit_code, result.stdout, result.stderr) == (0, both[side] + "\n", "")


def test_both_shows_the_two_answers_by_name(both):
    result = rankwise("generate", "plain", "--prompt", QUESTION, "--both", *SHORT)
    assert result.stdout == f"adapted: {both['answer']}\nbase:    {both['base_answer']}\n"


def test_a_dash_reads_the_prompt_from_stdin(both):
    assert printed("generate", "plain", "--prompt", "-", *SHORT, typed=QUESTION)["answer"] == both["answer"]


def test_the_system_message_of_training_is_used_unless_another_is_given(home):
    def of_base(*flags):
        return printed("generate", "polite", "--prompt", QUESTION, "--base", *flags, *SHORT)["base_answer"]

    assert of_base() == of_base("--system", "Be brief.")
    assert of_base() != of_base("--system", "")


def test_drawing_follows_the_seed(home):
    def drawn(seed):
        return printed(
            "generate", "plain", "--prompt", QUESTION, "--base", "--temperature", 1.5, "--seed", seed, *SHORT
        )  # fmt: skip

    assert drawn(1)["base_answer"] == drawn(1)["base_answer"] != drawn(2)["base_answer"]


def test_chat_answers_its_first_line_as_generate_does(both):
    talk = printed("chat", "plain", "--both", *SHORT, typed=f"{QUESTION}\n")
    assert set(talk) == {"run", "turns"} and talk["run"] == "plain"
    expected = {"user": QUESTION, "adapted": both["answer"], "base": both["base_answer"]}
    stopped = {"adapted_stopped": both["answer_stopped"], "base_stopped": both["base_answer_stopped"]}
    assert talk["turns"] == [expected | stopped]


def test_chat_speaks_each_answer_on_its_own_line_and_names_the_sides_when_there_are_two(both):
    one = rankwise("chat", "plain", *SHORT, typed=f"{QUESTION}\n/new\n{QUESTION}\n")
    assert (one.exit_code, one.stdout) == (0, f"{both['answer']}\n" * 2)
    two = rankwise("chat", "plain", "--both", *SHORT, typed=f"{QUESTION}\n/quit\n")
    assert (two.exit_code, two.stdout) == (0, f"adapted: {both['answer']}\nbase: {both['base_answer']}\n")


def test_chat_remembers_new_forgets_and_quit_ends(both):
    remembered = printed("chat", "plain", "--base", *SHORT, typed=f"{QUESTION}\n\n{QUESTION}\n/quit\n{QUESTION}\n")
    first, second = remembered["turns"]
    assert first["base"] == both["base_answer"] != second["base"]
    forgotten = printed("chat", "plain", "--base", *SHORT, typed=f"{QUESTION}\n/new\n{QUESTION}\n")
    assert forgotten["turns"][-1]["base"] == both["base_answer"]


def test_system_sets_shows_and_clears_the_message_and_the_conversation_goes_on(both):
    def of_base(*flags):
        return printed("generate", "plain", "--prompt", QUESTION, "--base", *flags, *SHORT)["base_answer"]

    lines = ["/system", "/system the dog jumps lazy", "/system", QUESTION, "/new", "/system none", "/system", QUESTION]
    result = rankwise("chat", "plain", "--base", "--json", *SHORT, typed="\n".join([*lines, "/system none", QUESTION]))
    first, second, third = (turn["base"] for turn in json.loads(result.stdout)["turns"])
    assert first == of_base("--system", "the dog jumps lazy") != second == of_base() != third
    assert result.stderr.splitlines() == [
        "there is no system message", "system message: the dog jumps lazy", "there is no system message",
    ]  # fmt: skip


def test_a_new_system_message_takes_the_place_of_the_one_of_training(home):
    talk = printed("chat", "polite", "--base", *SHORT, typed=f"/system the dog jumps\n{QUESTION}\n/new\n{QUESTION}\n")
    alone = printed("generate", "polite", "--base", "--prompt", QUESTION, "--system", "the dog jumps", *SHORT)
    assert [turn["base"] for turn in talk["turns"]] == [alone["base_answer"]] * 2


def test_what_a_person_is_told_is_not_among_the_answers(both):
    result = rankwise("chat", "plain", *SHORT, typed=f"/help\n/sytem x\n{QUESTION}\n")
    assert (result.exit_code, result.stdout) == (0, f"{both['answer']}\n")
    assert "/system" in result.stderr and 'Did you mean "/system"?' in result.stderr


def test_an_answer_that_repeats_itself_is_cut_short_and_said(home, monkeypatch):
    from rankwise.inference import decoding

    # a random model rarely loops for long before its context ends, so here sixteen tokens are a loop
    monkeypatch.setattr(decoding, "repeats", lambda ids: True)
    told, long = "[stopped: the answer repeats itself]", ("--max-new-tokens", 40, "--system", "x")
    found = printed("generate", "plain", "--base", "--prompt", QUESTION, *long)
    assert (found["base_answer_stopped"], found["base_answer_tokens"]) == ("repetition", 16)
    for words in (("generate", "--prompt", QUESTION), ("chat",)):
        result = rankwise(words[0], "plain", "--base", *words[1:], *long, typed=QUESTION)
        assert result.stdout == f"{found['base_answer']}\n" and result.stderr == f"{told}\n"
        off = rankwise(words[0], "plain", "--base", *words[1:], *long, "--no-repetition-check", typed=QUESTION)
        assert off.stdout.startswith(found["base_answer"]) and len(off.stdout) > len(result.stdout)
        assert off.stderr == ""
    talk = printed("chat", "plain", "--base", *long, typed=QUESTION)
    assert talk["turns"][0]["base_stopped"] == "repetition"
    both = rankwise("generate", "plain", "--both", "--prompt", QUESTION, *long)
    assert f"base: {told}" in both.stderr


def test_a_conversation_that_has_grown_too_long_says_so_and_goes_on_after_new(home):
    result = done("chat", "plain", "--json", *SHORT, typed=f"{'dog ' * 300}\n/new\n{QUESTION}\n")
    assert "context" in result.stderr and "/new" in result.stderr and "Traceback" not in result.stderr
    assert [turn["user"] for turn in json.loads(result.stdout)["turns"]] == [QUESTION]


def test_a_line_that_only_one_side_has_room_for_does_not_break_the_conversation(both, tiny_folder):
    hub = AutoTokenizer.from_pretrained(tiny_folder)

    def length(answer, line):
        turns = [("user", QUESTION), ("assistant", answer), ("user", line)]
        shown = [{"role": role, "content": text} for role, text in turns]
        return len(hub(hub.apply_chat_template(shown, tokenize=False, add_generation_prompt=True))["input_ids"])

    room = 256 - 12
    lines = ("x" * number for number in range(300))
    line = next(x for x in lines if max(length(both["answer"], x), length(both["base_answer"], x)) > room)
    assert min(length(both["answer"], line), length(both["base_answer"], line)) <= room, "the answers are alike"
    turns = printed("chat", "plain", "--both", *SHORT, typed=f"{QUESTION}\n{line}\n")["turns"]
    assert turns[0]["base"] == both["base_answer"]


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_base_and_both_exclude_each_other(home, verb):
    words = ("--prompt", QUESTION) if verb == "generate" else ()
    result = rankwise(verb, "plain", *words, "--base", "--both", typed="hello\n")
    assert result.exit_code == 2
    assert "give one of them" in result.stderr and "Traceback" not in result.output


def test_a_run_cannot_say_whose_code_to_trust_nor_on_which_device(home):
    # A run may be somebody else's: its config.json must not make us run the code of a model.
    from pathlib import Path

    from rankwise.inference.tuned_model import load_tuned

    file = Path("runs/plain/config.json")
    before = file.read_text()
    spec = json.loads(before)
    spec["model"] |= {"trust_code": "f" * 40, "device": "cuda:7"}
    try:
        file.write_text(json.dumps(spec))
        asked = load_tuned("plain", force_result=True)
    finally:
        file.write_text(before)
    assert asked.model.config.trust_code is None
    assert asked.model.config.device == "auto"
