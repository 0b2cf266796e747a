"""The page answers as `rankwise chat` does, with strengths and classes, and gives the model's memory back."""

from __future__ import annotations

import base64
import json
import threading
import time

import pytest

from kit.classifiers import encoder_folder, labelled, write_rows
from kit.command import rankwise
from kit.vision_models import lay_pictures
from rankwise.commands.predict import predict
from rankwise.config.validation import GenerationConfig
from rankwise.inference.tuned_model import load_tuned
from rankwise.rows.text.example import Message
from rankwise.studio.ask import LOADED_MODELS
from rankwise.studio.asking import AskBody, LoadedModels

QUESTION = "What is land 3?"


@pytest.fixture(scope="module")
def home(library, tmp_path_factory):
    return library.lay_out(tmp_path_factory.mktemp("asking") / "home", "lora", "adalora", "full")


@pytest.fixture(autouse=True)
def desk(home, workplace, monkeypatch):
    monkeypatch.chdir(home)
    yield LOADED_MODELS
    deadline = time.monotonic() + 20
    while not LOADED_MODELS.release():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def asked(client, *sides, runs=("lora", "adalora"), **how):
    """The answers by side, and the last event of each."""
    sides = [{"messages": [{"role": "user", "content": QUESTION}]} | side for side in sides]
    answer = client.post("/ask/answer", json={"runs": list(runs), "sides": sides, "max_new_tokens": 160} | how)
    assert answer.status_code == 200, answer.text
    events = [json.loads(one.removeprefix("data: ")) for one in answer.text.split("\n\n") if one]
    assert events[-1] == {"end": True}
    texts, ends = [""] * len(sides), [None] * len(sides)
    for event in events:
        if "side" in event and "text" in event:
            texts[event["side"]] += event["text"]
        elif "side" in event:
            ends[event["side"]] = event
        elif "problem" in event:
            raise AssertionError(event)
    return texts, ends


def chatted(run, *words, lines=(QUESTION,)):
    given = ["chat", run, "--json", "--quiet", "--max-new-tokens", "160", *words]
    printed = rankwise(*given, typed="".join(f"{one}\n" for one in lines))
    return json.loads(printed.stdout)["turns"]


def test_greedy_answers_are_those_of_the_command(client):
    sides = ({"run": ""}, {"run": "lora"}, {"run": "adalora"})
    texts, ends = asked(client, *sides)
    (both,), (other,) = chatted("lora", "--both"), chatted("adalora")
    assert texts == [both["base"], both["adapted"], other["adapted"]]
    assert len({*texts}) == 3  # the adapters, and the base, answer differently
    assert [one["finish"] for one in ends] == [both["base_stopped"], both["adapted_stopped"], other["adapted_stopped"]]


def test_an_answer_that_repeats_itself_is_stopped_where_the_command_stops_it(client):
    looping = "Tell me of the quick brown fox"
    turns = [{"role": "user", "content": looping}]
    (text,), (end,) = asked(client, {"run": "", "messages": turns}, max_new_tokens=200)
    (turn,) = chatted("lora", "--base", "--max-new-tokens", "200", lines=(looping,))
    assert (text, end["finish"]) == (turn["base"], "repetition") == (text, turn["base_stopped"])


def test_a_conversation_goes_on_as_in_the_command(client):
    (first, second) = chatted("lora", "--system", "Be brief.", lines=(QUESTION, "And land 5?"))
    history = [QUESTION, first["adapted"], "And land 5?"]
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), history, strict=True)]
    texts, _ = asked(client, {"run": "lora", "messages": turns}, system="Be brief.")
    assert texts == [second["adapted"]]


@pytest.mark.parametrize("run", ["adalora", "full"])
def test_a_strength_scales_the_change(client, run):
    strengths = (0.0, 0.5, 1.0, 1.5)
    sides = ({"run": ""}, *({"run": run, "strength": one} for one in strengths))
    (base, *texts), _ = asked(client, *sides, runs=(run,), max_new_tokens=12)
    tuned = load_tuned(run)
    spec, expected = GenerationConfig(max_new_tokens=12), []
    for strength in strengths:
        with tuned.trainable.scaled(strength):
            expected.append(tuned.answer([Message("user", QUESTION)], spec).text)
    assert texts == expected and texts[0] == base and texts[0] != texts[2]


@pytest.mark.parametrize("run", ["lora", "full"])
def test_an_answer_without_a_length_fits_into_the_context(client, run):
    looping = [{"role": "user", "content": "What?"}]
    _, (end,) = asked(client, {"run": "", "messages": looping}, runs=(run,), max_new_tokens=None)
    assert end["finish"] == "length" and 200 < end["tokens"] < 256


def test_what_is_wrong_is_told_beside_its_side_and_the_others_answer(client):
    long = [{"role": "user", "content": "land " * 400}]
    texts, ends = asked(client, {"run": "lora"}, {"run": "lora", "messages": long}, {"run": "nobody"}, max_new_tokens=4)
    assert texts[0] and "context" in ends[1]["problem"] and "nobody" in ends[2]["problem"]


@pytest.mark.parametrize(("body", "why"), [
    ({"runs": [], "sides": []}, "runs"), ({"runs": ["lora"], "sides": [], "temperature": "hot"}, "temperature"),
    ({"runs": ["lora"], "sides": [{"run": "lora", "messages": [], "strength": -1}]}, "strength"),
    ({"runs": ["lora"], "sides": [], "max_new_tokens": 10**9}, "max_new_tokens"), ([], "object"),
])  # fmt: skip
def test_a_wrong_question_is_refused_by_name(client, body, why):
    answer = client.post("/ask/answer", json=body, headers={"accept": "*/*"})  # as scripts of a page send it
    assert answer.status_code == 400 and why in answer.json()["error"]


def test_the_model_is_loaded_once_and_given_back_when_nobody_asks():
    loads, goes_on = [], threading.Event()

    class Loaded:
        def answer(self, body, send, left):
            send({"text": "x"})
            assert goes_on.wait(20)

    desk, begun = LoadedModels(lambda names, callback: loads.append(names) or Loaded(), idle=0.2), threading.Event()
    side = {"run": "", "messages": [{"role": "user", "content": "x"}]}
    one, other = (AskBody.model_validate({"runs": [name], "sides": [side]}) for name in ("a", "b"))

    def question(body, send=lambda event: None):
        desk.ask(body, send, threading.Event(), lambda event: None)

    both = [threading.Thread(target=question, args=(one, lambda event: begun.set())) for _ in range(2)]
    for thread in both:
        thread.start()
    assert begun.wait(20)
    with pytest.raises(ValueError, match="is still answering"):  # one model at a time
        question(other)
    assert not desk.release() and loads == [("a",)] and desk.names == ("a",)
    goes_on.set()
    for thread in both:
        thread.join()
    question(other)
    assert loads == [("a",), ("b",)]
    deadline = time.monotonic() + 10
    while desk.names and time.monotonic() < deadline:
        time.sleep(0.02)
    assert desk.names == ()


def test_a_classifier_tells_its_classes_with_probabilities(client, classifier_home, monkeypatch):
    monkeypatch.chdir(classifier_home)
    text = "the film is good and the plot is a plot"
    answer = client.post("/ask/answer", json={
        "runs": ["classes"], "sides": [{"run": "classes", "messages": [{"role": "user", "content": text}]}],
    })  # fmt: skip
    told = next(one for one in map(json.loads, answer.text.replace("data: ", "").split("\n\n")[:-1]) if "labels" in one)
    (classifier_home / "asked.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (row,) = predict("classes", "asked.jsonl", "out.jsonl", overwrite=True).rows
    shares = row.prediction.probabilities
    assert dict(told["labels"]) == pytest.approx(shares) and told["chosen"] == row.prediction.label
    assert told["labels"][0][1] == max(shares.values())
    assert "text" not in told
    assert client.get("/ask?run=classes").status_code == 200


def said_of(client, run, name, **more):
    """What one side was told of an image, or of a text."""
    sides = [{"run": run, "messages": [{"role": "user", "content": name}]}]
    answer = client.post("/ask/answer", json={"runs": [run], "sides": sides} | more)
    told = [json.loads(one.removeprefix("data: ")) for one in answer.text.split("\n\n") if one]
    return next(one for one in told if "side" in one)


def test_a_classifier_of_images_tells_its_classes_as_predict_does(client, picture_home, monkeypatch):
    monkeypatch.chdir(picture_home)
    rows = predict("pictures", "rows", "out.jsonl", overwrite=True).rows
    for row in (rows[0], rows[-1]):
        content = row.question.image.source.read_bytes()
        told = said_of(client, "pictures", "a.png", image=base64.b64encode(content).decode())
        assert dict(told["labels"]) == pytest.approx(row.prediction.probabilities, rel=1e-5)
        assert told["chosen"] == row.prediction.label
    page = client.get("/ask?run=pictures").text
    assert 'type="file"' in page and ".png" in page and 'id="prompt"' not in page


@pytest.mark.parametrize(("image", "why"), [
    (None, "reads images"), ("a-b", "not base64"), ("", "a.png"), (base64.b64encode(b"no image").decode(), "a.png"),
    (base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(99)).decode(), "a.png"),
])  # fmt: skip
def test_what_is_no_image_is_a_sentence_beside_its_side(client, picture_home, monkeypatch, image, why):
    monkeypatch.chdir(picture_home)
    assert why in said_of(client, "pictures", "a.png", image=image)["problem"]


def test_a_conversation_is_as_short_as_ever_beside_an_image(client):
    """An image may be large; what is said may not."""
    sides = [{"run": "lora", "messages": [{"role": "user", "content": "x" * 2_000_000}]}]
    for more in ({}, {"image": "aaaa"}):
        answer = client.post("/ask/answer", json={"runs": ["lora"], "sides": sides} | more)
        assert answer.status_code == 413 and "2,000,000 bytes" in answer.text


def test_a_classifier_of_texts_says_that_it_reads_no_image(client, classifier_home, monkeypatch):
    monkeypatch.chdir(classifier_home)
    assert "reads texts" in said_of(client, "classes", "a.png", image="aaaa")["problem"]


@pytest.fixture(scope="module")
def picture_home(tmp_path_factory):
    return lay_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def classifier_home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    encoder_folder(folder / "bert")
    write_rows(folder / "rows.jsonl", labelled(12))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ("train", "--model", "bert", "--data", "rows.jsonl", "--run", "classes", "--steps", "2", "--quiet")
        assert rankwise(*words).exit_code == 0
    return folder
