"""What is asked is what the adapter answers, whole and piece by piece, in the form that OpenAI's clients read."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir

import pytest

from kit.serving_names import NAMES
from rankwise.config.validation import GenerationConfig
from rankwise.inference.batch import GrowingBatch
from rankwise.inference.tuned_model import load_tuned
from rankwise.rows.text.example import Message
from rankwise.serving.engine import Limits
from rankwise.system.files import sha256_of

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
QUESTIONS = [f"What is land {number}?" for number in (1, 2, 3, 7, 20)]


def chat(model, text, **more):
    return {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, **more}


def said(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def events(answer):
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.fixture(scope="module")
def references(home):
    """What `rankwise generate` answers, by each run and by the base."""
    answers = {}
    with chdir(home):
        for name in NAMES:
            tuned = load_tuned(name)
            for text in QUESTIONS:
                messages = [Message("user", text)]
                answers[name, text] = tuned.answer(messages, GenerationConfig(max_new_tokens=24)).text
                answers["tiny-llama", text] = tuned.answer(
                    messages, GenerationConfig(max_new_tokens=24), base=True
                ).text
    return answers


def test_sixteen_clients_get_their_adapters_answers(server, references):
    """Mixed in one batch; the hash is of the weights that answered."""
    jobs = [(name, text) for text in QUESTIONS for name in (*NAMES, "tiny-llama")] * 2
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda job: server.client.post(CHAT, json=chat(*job)), jobs))
    assert [said(answer) for answer in answers] == [references[job] for job in jobs]
    assert len({references[name, QUESTIONS[0]] for name in (*NAMES, "tiny-llama")}) > 2
    for (name, _), answer in zip(jobs, answers, strict=True):
        listed = server.client.get(f"/v1/models/{name}").json()
        assert answer.json()["system_fingerprint"] == listed["sha256"] and answer.json()["model"] == name


def test_the_hash_is_that_of_the_file_of_the_weights(server, home):
    models = {one["id"]: one for one in server.client.get("/v1/models").json()["data"]}
    assert list(models) == ["tiny-llama", *NAMES] and models["tiny-llama"]["parent"] is None
    for name in NAMES:
        assert models[name]["sha256"] == sha256_of(home / "runs" / name / "adapter" / "adapter_model.safetensors")
        assert models[name]["parent"] == "tiny-llama"


def test_pieces_are_the_whole_answer(server):
    for name in NAMES:
        whole = server.client.post(CHAT, json=chat(name, QUESTIONS[0])).json()
        made = events(server.client.post(CHAT, json=chat(
            name, QUESTIONS[0], stream=True, stream_options={"include_usage": True}
        )))  # fmt: skip
        parts = [piece["choices"][0] for piece in made[:-1]]
        assert parts[0]["delta"]["role"] == "assistant"
        assert "".join(part["delta"].get("content", "") for part in parts) == whole["choices"][0]["message"]["content"]
        assert parts[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
        usage = whole["usage"]
        assert usage.pop("prompt_tokens_details") == {"cached_tokens": 0}
        reused = {"cached_tokens": usage["prompt_tokens"] - 1}  # the same prompt was read a moment ago
        assert made[-1]["usage"] == usage | {"prompt_tokens_details": reused}
        assert {piece["id"] for piece in made} == {made[0]["id"]}


def test_a_stop_text_ends_an_answer_before_it(server):
    whole = said(server.client.post(CHAT, json=chat("lora", QUESTIONS[0])))
    stop = whole[3:6]
    for stream in (False, True):
        answer = server.client.post(CHAT, json=chat("lora", QUESTIONS[0], stop=["no such text", stop], stream=stream))
        if stream:
            parts = [piece["choices"][0] for piece in events(answer)]
            assert "".join(part["delta"].get("content", "") for part in parts) == whole[: whole.index(stop)]
            assert parts[-1]["finish_reason"] == "stop"
        else:
            assert said(answer) == whole[: whole.index(stop)]


def test_lengths_choices_and_seeds(server):
    short = server.client.post(CHAT, json=chat("lora", QUESTIONS[0], max_tokens=2)).json()
    assert short["choices"][0]["finish_reason"] == "length" and short["usage"]["completion_tokens"] == 2
    drawn = chat("tiny-llama", QUESTIONS[0], temperature=1.5, n=3, seed=5, max_completion_tokens=6)
    first, again = (server.client.post(CHAT, json=drawn).json() for _ in range(2))
    reused = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert reused == again["usage"]["prompt_tokens"] - 1, "the prompt counts once"
    first, again = first["choices"], again["choices"]
    assert first == again and [one["index"] for one in first] == [0, 1, 2]
    assert len({one["message"]["content"] for one in first}) == 3
    other = server.client.post(CHAT, json=drawn | {"seed": 6}).json()["choices"]
    assert other != first


def test_log_probabilities_are_those_of_the_tokens(server):
    answer = server.client.post(CHAT, json=chat("lora", QUESTIONS[0], logprobs=True, top_logprobs=3, max_tokens=4))
    tokens = answer.json()["choices"][0]["logprobs"]["content"]
    assert len(tokens) == 4
    for one in tokens:
        best = one["top_logprobs"][0]
        assert len(one["top_logprobs"]) == 3 and (best["token"], best["logprob"]) == (one["token"], one["logprob"])
        assert sum(2.718281828 ** other["logprob"] for other in one["top_logprobs"]) <= 1.0001
    text = server.client.post(TEXT, json={"model": "lora", "prompt": "What", "max_tokens": 3, "logprobs": 9}).json()
    assert [len(one) for one in text["choices"][0]["logprobs"]["top_logprobs"]] == [9, 9, 9]


def test_a_text_is_continued_as_it_is(server, serving):
    """With its marks: the text of a conversation is continued with its answer."""
    template = serving.models["lora"].template
    texts = [template.text([Message("user", text)], answer_next=True) for text in QUESTIONS[:2]]
    body = {"model": "lora", "prompt": texts, "max_tokens": 24, "temperature": 0}
    choices = server.client.post(TEXT, json=body).json()["choices"]
    answers = [said(server.client.post(CHAT, json=chat("lora", text))) for text in QUESTIONS[:2]]
    assert [one["text"].strip() for one in choices] == [answer.strip() for answer in answers]
    made = events(server.client.post(TEXT, json=body | {"prompt": texts[0], "stream": True}))
    assert "".join(piece["choices"][0]["text"] for piece in made) == choices[0]["text"]


def test_the_system_message_and_parts_of_a_content(server):
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "land 1?"}]
    in_parts = {"model": "lora", "temperature": 0, "messages": [{"role": "user", "content": parts}]}
    assert said(server.client.post(CHAT, json=in_parts)) == said(
        server.client.post(CHAT, json=chat("lora", QUESTIONS[0]))
    )
    turns = [{"role": "developer", "content": "Be brief."}, *chat("lora", QUESTIONS[0])["messages"]]
    longer = server.client.post(CHAT, json=chat("lora", "") | {"messages": turns}).json()
    assert longer["usage"]["prompt_tokens"] > server.client.post(CHAT, json=in_parts).json()["usage"]["prompt_tokens"]


def test_a_typed_control_token_is_plain_text(server, serving):
    """As in training: nobody can end a turn by writing its mark."""
    end = serving.model.tokenizer.end_tokens[0]
    answer = server.client.post(CHAT, json=chat("lora", f"What is {end} land 1?", max_tokens=1)).json()
    plain = server.client.post(CHAT, json=chat("lora", "What is  land 1?", max_tokens=1)).json()
    assert answer["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 1


def test_null_is_a_field_that_is_not_given(server):
    """As in OpenAI's API, whose clients send it."""
    without = chat("lora", QUESTIONS[0])
    nothing = dict.fromkeys(("top_p", "n", "stream", "stop", "logprobs", "presence_penalty", "tools", "tool_choice"))
    assert said(server.client.post(CHAT, json=without | nothing)) == said(server.client.post(CHAT, json=without))
    assert "temprature" in server.client.post(CHAT, json=without | {"temprature": None}).text


def test_a_host_may_be_in_capitals(server):
    assert server.client.get("/health", headers={"host": "LocalHost:8000"}).status_code == 200


@pytest.mark.parametrize(
    ("reading", "words", "order"),
    [
        (10, ("fox", "the", "dog"), "ppRpSpSRpSpSRSS"), (30, ("fox", "the", "dog"), "RpSRpSRSS"),
        (10_000, ("fox", "the", "dog"), "RRRSSS"), (24, ("fox", "fox", "fox"), "RRRSSS"),
    ],
    ids=str,
)  # fmt: skip
def test_answers_go_on_while_long_and_many_prompts_are_read(started, monkeypatch, reading, words, order):
    """p is a part of a prompt of some twenty tokens, R its rest, S a token for all that are written. What was read
    before costs nothing."""
    server, seen = started(Limits(reading=reading)), []
    read, step = GrowingBatch.read, GrowingBatch.step

    def reads(*given):
        chosen = read(*given)
        seen.append("p" if chosen is None else "R")
        return chosen

    monkeypatch.setattr(GrowingBatch, "read", reads)
    monkeypatch.setattr(GrowingBatch, "step", lambda *given: (seen.append("S"), step(*given))[1])
    prompts = [f"{word} " * 20 for word in words]
    body = {"model": "lora", "prompt": prompts, "max_tokens": 12, "temperature": 0, "logit_bias": {"2": -100}}
    assert 60 < server.client.post(TEXT, json=body).json()["usage"]["prompt_tokens"] < 70
    assert "".join(seen).startswith(order), "".join(seen)


@pytest.mark.parametrize(("positions", "expected"), [(30, 1), (60, 1), (80, 2)])
def test_answers_are_written_together_as_far_as_their_tokens_have_room(started, monkeypatch, positions, expected):
    """Each prompt and its answer have some 33 tokens; the first one is written in any case."""
    server, together = started(Limits(positions=positions)), []
    step = GrowingBatch.step
    monkeypatch.setattr(GrowingBatch, "step", lambda batch: (together.append(len(batch.rows)), step(batch))[1])
    prompts = [f"{word} " * 20 for word in ("fox", "the", "dog")]
    body = {"model": "lora", "prompt": prompts, "max_tokens": 12, "temperature": 0, "logit_bias": {"2": -100}}
    assert server.client.post(TEXT, json=body).status_code == 200
    assert max(together) == expected


def test_a_prompt_whose_client_goes_while_it_is_read_is_dropped(started, monkeypatch):
    server, parts = started(Limits(reading=2)), []
    read = GrowingBatch.read

    def reads(batch, row, most):
        parts.append(row)
        if len(parts) == 3:
            server.engine.cancel([server.engine._reading])
        return read(batch, row, most)

    monkeypatch.setattr(GrowingBatch, "read", reads)
    gone = threading.Thread(
        target=lambda: server.client.post(CHAT, json=chat("lora", QUESTIONS[0], stream=True, max_tokens=4)), daemon=True
    )
    gone.start()
    while server.engine.counts.cancelled < 1 or server.engine.running:
        time.sleep(0.01)
    assert len(parts) == 3 and parts[0].cache is not None and server.engine.counts.failed == 0
    monkeypatch.setattr(GrowingBatch, "read", read)
    assert said(server.client.post(CHAT, json=chat("lora", QUESTIONS[0], max_tokens=4)))
