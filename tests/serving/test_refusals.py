"""What may not be asked, and by whom: each refused in a sentence, and the server answers as before."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
import time

import pytest

from rankwise.errors import ConfigError
from rankwise.serving.bodies import LARGEST_BODY
from rankwise.serving.engine import Limits, Pending

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASKING = [{"role": "user", "content": "hi"}]
GOOD = {"model": "lora", "messages": ASKING, "max_tokens": 1}
DEEP = '{"model": "lora", "messages": ' + "[" * 100_000 + "]" * 100_000 + "}"
FIELDS = {
    "n=1e9": {"n": 10**9}, "n is true": {"n": True}, "n is 0": {"n": 0}, "n is 1.5": {"n": 1.5},
    "max_tokens -1": {"max_tokens": -1}, "max_tokens 1e12": {"max_tokens": 10**12}, "max_tokens x": {"max_tokens": "x"},
    "max_tokens true": {"max_tokens": True}, "both lengths": {"max_completion_tokens": 3},
    "temperature 1e308": {"temperature": 1e308}, "temperature -1": {"temperature": -1},
    "temperature true": {"temperature": True}, "temperature text": {"temperature": "hot"},
    "top_p 0": {"top_p": 0}, "top_p 2": {"top_p": 2}, "seed text": {"seed": "x"}, "seed 1e30": {"seed": 10**30},
    "nine stops": {"stop": ["x"] * 9}, "a long stop": {"stop": "x" * 65}, "an empty stop": {"stop": ""},
    "stop is a number": {"stop": 5}, "biases": {"logit_bias": {str(n): 1 for n in range(301)}},
    "a bias of no token": {"logit_bias": {"x": 1}}, "a bias far away": {"logit_bias": {"99999999": 1}},
    "a bias of 1e9": {"logit_bias": {"1": 1e9}}, "penalty 3": {"presence_penalty": 3},
    "top_logprobs 21": {"logprobs": True, "top_logprobs": 21}, "top_logprobs alone": {"top_logprobs": 2},
    "an unknown field": {"temprature": 0}, "chat_template": {"chat_template": "{{ 1 }}"},
    "chat_template_kwargs": {"chat_template_kwargs": {"x": 1}}, "tensors": {"prompt_embeds": "AAAA"},
    "json_schema": {"response_format": {"type": "json_schema"}}, "functions": {"functions": []},
    "a forced tool": {"tool_choice": "required"}, "tools of nothing": {"tools": [1]},
    "a tool without name": {"tools": [{"type": "function", "function": {}}]},
    "a deep tool": {"tools": [
        {"name": "f", "parameters": functools.reduce(lambda inside, _: {"a": inside}, range(700), 1)}
    ]},
    "stream_options alone": {"stream_options": {"include_usage": True}}, "stream is 3": {"stream": 3},
    "stream is 1": {"stream": 1}, "stream is yes": {"stream": "yes"}, "logprobs is 1": {"logprobs": 1},
    "store is a text": {"store": "on"}, "usage is 1": {"stream": True, "stream_options": {"include_usage": 1}},
    "no messages": {"messages": []}, "513 messages": {"messages": ASKING * 513}, "messages is text": {"messages": "hi"},
    "an unknown role": {"messages": [{"role": "root", "content": "hi"}]},
    "no content": {"messages": [{"role": "user"}]},
    "content is a number": {"messages": [{"role": "user", "content": 3}]},
    "an image": {"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
    ]}]},
    "an unknown field of a turn": {"messages": [ASKING[0] | {"cache_control": {"type": "ephemeral"}}]},
    "loss of a turn": {"messages": [ASKING[0] | {"weight": 0}]},
    "an unknown field of a part": {"messages": [{"role": "user", "content": [
        {"type": "text", "text": "hi", "detail": "low"}
    ]}]},
    "half a character": {"messages": [{"role": "user", "content": "\ud800"}]},
    "ends with an answer": {"messages": [*ASKING, {"role": "assistant", "content": "ho"}]},
    "a long conversation": {"messages": [{"role": "user", "content": "hi " * 4000}]},
    "model ../x": {"model": "../x"}, "model of the disk": {"model": "/etc/passwd"},
    "model is a list": {"model": ["lora"]},
}  # fmt: skip
BODIES = {
    "nothing": b"", "half": b'{"model": "lo', "a list": b"[]", "a number": b"3", "invalid UTF-8": b'{"model": "\xff"}',
    "NaN": json.dumps(GOOD).replace("1}", "1, \"temperature\": NaN}").encode(), "deep": DEEP.encode(),
    "twice": b'{"model": "lora", "model": "lora", "messages": []}', "a megabyte": b" " * (LARGEST_BODY + 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def asked(serving):
    from starlette.testclient import TestClient

    from rankwise.serving.app import Server
    from rankwise.serving.engine import ServingEngine

    engine = ServingEngine(serving.model.module, serving.rows, Limits())
    engine.start()
    yield TestClient(Server(serving, engine, 8).app(key=None, host="127.0.0.1"), base_url="http://127.0.0.1")
    assert engine.counts.failed == 0
    engine.stop()


def wait_until_idle(server):
    """A row leaves just after its last piece was sent."""
    until = time.monotonic() + 30
    while (server.engine.running or server.engine.waiting) and time.monotonic() < until:
        time.sleep(0.01)
    assert (server.engine.running, server.engine.waiting) == (0, 0)


@pytest.mark.parametrize("name", FIELDS)
def test_a_wrong_field_is_refused_in_a_sentence(asked, name):
    answer = asked.post(CHAT, content=json.dumps(GOOD | FIELDS[name]), headers={"content-type": "application/json"})
    problem = answer.json()["error"]
    assert answer.status_code in (400, 404) and problem["message"].endswith("."), answer.text
    assert "Traceback" not in answer.text and "/tmp" not in answer.text
    assert asked.post(CHAT, json=GOOD).status_code == 200


@pytest.mark.parametrize("name", BODIES)
def test_a_wrong_body_is_refused_in_a_sentence(asked, name):
    answer = asked.post(TEXT, content=BODIES[name], headers={"content-type": "application/json"})
    assert answer.status_code == (413 if name == "a megabyte" else 400) and answer.json()["error"]["message"]
    assert asked.get("/health").json() == {"status": "ok"}


def test_another_content_type_method_or_route(asked):
    assert asked.post(CHAT, content=json.dumps(GOOD), headers={"content-type": "text/plain"}).status_code == 415
    assert asked.get(CHAT).status_code == 405 and asked.get("/etc/passwd").status_code == 404
    assert asked.get("/v1/models/../../x").status_code == 404


def test_a_question_is_missed_by_its_name(asked):
    answer = asked.post(CHAT, json=GOOD | {"messages": [{"role": "system", "content": "hi"}]})
    assert "there is no question" in answer.json()["error"]["message"]


def test_every_problem_is_named_at_once(asked):
    answer = asked.post(CHAT, json=GOOD | {"n": 0, "top_p": 2, "temprature": 0})
    message = answer.json()["error"]["message"]
    assert all(part in message for part in ('"n" is 0', '"top_p" is 2', '"temprature". Did you mean "temperature"'))


@pytest.mark.parametrize("key", [None, "correct horse"])
def test_every_route_needs_the_key_and_a_foreign_page_gets_nothing(started, key):
    server = started(key=key, origins=("https://app.example",))
    with_key = {"authorization": f"Bearer {key}"} if key else {}
    for route in server.app.routes:
        for method in route.methods:
            path = route.path.replace("{name:path}", "lora")
            for headers in (
                {},
                {"authorization": "Bearer wrong"},
                {"authorization": f"Basic {key}"},
                {"authorization": str(key)},
                {"authorization": f"Bearer{key}"},
            ):
                refused = server.client.request(method, path, headers=headers).status_code == 401
                assert refused == (key is not None and path != "/health"), (method, path)
            assert server.client.request(method, path, headers=with_key).status_code not in (401, 403)
            for foreign in ({"origin": "http://evil.example"}, {"origin": "null"}):
                assert server.client.request(method, path, headers=with_key | foreign).status_code == 403
            rebound = server.client.request(method, path, headers=with_key | {"host": "evil.example:8000"})
            assert (rebound.status_code == 403) == (key is None)
            for host in ("[::1].evil.com", "[::1]evil.com", "localhost:8511@evil", "x/health", "localhost:x"):
                answer = server.client.request(method, path, headers=with_key | {"host": host})
                assert answer.status_code == 403, host
            for allowed in ("https://app.example", "http://127.0.0.1:8000"):
                assert server.client.request(method, path, headers=with_key | {"origin": allowed}).status_code != 403


@pytest.mark.parametrize("key", [None, "correct horse"])
def test_a_browser_lets_an_allowed_page_ask_and_read(started, key):
    """It asks without the key first, and gives the page only answers that name its origin."""
    server = started(key=key, origins=("https://app.example",))
    wish = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    asking = {"authorization": f"Bearer {key}"}
    for origin, allowed in (("https://app.example", "https://app.example"), ("http://evil.example", None)):
        before = server.client.options(CHAT, headers=wish | {"origin": origin})
        assert before.headers.get("access-control-allow-origin") == allowed and before.is_success == bool(allowed)
        answer = server.client.post(CHAT, json=GOOD, headers=asking | {"origin": origin})
        assert answer.headers.get("access-control-allow-origin") == allowed and answer.is_success == bool(allowed)


def test_other_machines_need_a_key_before_anything_is_loaded():
    from rankwise.serving.address import Address

    with pytest.raises(ConfigError, match="RANKWISE_API_KEY"):
        Address("0.0.0.0", 8000, None, ()).check()
    Address("0.0.0.0", 8000, "key", ()).check()
    Address("::1", 8000, None, ()).check()


@pytest.mark.parametrize("origin", ["https://app.example/", "*", "app.example", "https://app.example/page"])
def test_an_origin_that_no_browser_sends_and_a_key_that_no_request_brings(origin):
    from rankwise.serving.address import Address

    with pytest.raises(ConfigError) as refused:
        Address("127.0.0.1", 8000, "schlüssel", (origin, "https://app.example:8080")).check()
    assert len(refused.value.problems) == 2 and origin in refused.value.problems[0]


def test_more_choices_than_will_ever_fit(started):
    server = started(Limits(batch_size=1, waiting=1))
    assert server.client.post(CHAT, json=GOOD | {"n": 3}).status_code == 400
    assert server.client.post(CHAT, json=GOOD | {"n": 2}).status_code == 200


def test_tools_that_the_template_does_not_write(asked):
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    answer = asked.post(CHAT, json=GOOD | {"tools": [tool]})
    assert answer.status_code == 400 and "writes no tools. Take a model" in answer.text
    assert asked.post(CHAT, json=GOOD | {"tools": [tool], "tool_choice": "none"}).status_code == 200


def test_an_answer_that_was_empty_may_be_sent_back(asked):
    turns = [*ASKING, {"role": "assistant", "content": ""}, {"role": "user", "content": ""}]
    assert asked.post(CHAT, json=GOOD | {"messages": turns}).status_code == 200


def test_a_text_that_cannot_be_read_ends_its_own_answer(started, serving, monkeypatch):
    server, real = started(), Pending.take

    def take(self, chosen):
        if len(self.row.prompt) > 30:
            raise ValueError
        return real(self, chosen)

    monkeypatch.setattr(Pending, "take", take)
    long = GOOD | {"messages": [{"role": "user", "content": "hi " * 20}]}
    assert server.client.post(CHAT, json=long).status_code == 500
    assert server.client.post(CHAT, json=GOOD).status_code == 200
    wait_until_idle(server)


def test_too_many_requests_are_told_when_to_come_again(started):
    server = started(Limits(batch_size=1, waiting=2))
    codes = []

    def ask():
        answer = server.client.post(CHAT, json=GOOD | {"max_tokens": 150, "logit_bias": {"2": -100}})
        codes.append((answer.status_code, answer.headers.get("retry-after")))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [after for code, after in codes if code == 429]
    assert {code for code, _ in codes} == {200, 429} and len(refused) >= 4 and all(int(one) >= 1 for one in refused)
    assert server.engine.counts.refused == len(refused)
    assert server.client.post(CHAT, json=GOOD).status_code == 200


@pytest.mark.parametrize(("route", "writer"), [(CHAT, "chat_question"), (TEXT, "completion_question")])
def test_a_request_without_room_is_refused_before_its_prompt_is_written(route, writer, started, monkeypatch):
    # the template and the tokenizer of refused requests took the time of answers that were being written
    monkeypatch.setattr(f"rankwise.serving.app.{writer}", lambda *given: pytest.fail("a prompt was written"))
    server = started(Limits(batch_size=0, waiting=0))
    body = GOOD if route == CHAT else {"model": "lora", "prompt": "hi"}
    answer = server.client.post(route, json=body)
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
    assert server.engine.counts.refused == 1


def test_where_nothing_may_wait_there_is_room_for_what_is_written_at_once(started):
    server = started(Limits(batch_size=2, waiting=0))
    assert server.client.post(CHAT, json=GOOD | {"n": 2}).status_code == 200
    assert server.client.post(CHAT, json=GOOD | {"n": 3}).status_code == 400


def test_an_answer_that_nobody_reads_any_more_is_not_written_on(started):
    server = started()
    with server.client.stream("POST", CHAT, json=GOOD | {"max_tokens": 200, "stream": True, "logit_bias": {"2": -100}}):
        pass
    wait_until_idle(server)


def test_a_whole_answer_is_not_written_on_either_once_its_client_has_gone(started):
    server, sent = started(), []
    body = json.dumps(GOOD | {"max_tokens": 230, "logit_bias": {"2": -100}}).encode()
    left = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive():
        if (message := next(left, None)) is not None:
            return message
        while not server.engine.running:
            await asyncio.sleep(0.001)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"",
        "headers": headers, "http_version": "1.1", "scheme": "http", "root_path": "", "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 9),
    }  # fmt: skip
    asyncio.run(server.app(scope, receive, send))
    assert server.engine.counts.cancelled == 1 and sent[0]["status"] == 499
    assert server.client.post(CHAT, json=GOOD).status_code == 200


def test_a_failure_is_told_to_those_whose_answer_it_was_and_others_go_on(started, serving, monkeypatch):
    server = started()
    real, broken = serving.model.module.forward, [True]

    @functools.wraps(real)  # its arguments are looked at
    def forward(*args, **kwargs):
        if broken and broken.pop():
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(serving.model.module, "forward", forward)
    answer = server.client.post(CHAT, json=GOOD)
    assert answer.status_code == 500 and answer.json()["error"]["message"] == "out of memory."
    assert server.client.post(CHAT, json=GOOD).status_code == 200
    assert (server.engine.counts.failed, server.engine.counts.cancelled) == (1, 0)


def test_what_nobody_foresaw_is_told_in_the_same_form(started, monkeypatch):
    server = started()

    def broken(*given):
        raise LookupError("our own mistake")

    monkeypatch.setattr("rankwise.serving.app.chat_question", broken)
    client = type(server.client)(server.app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    answer = client.post(CHAT, json=GOOD)
    assert answer.status_code == 500 and "the log says why" in answer.json()["error"]["message"]
    assert "our own mistake" not in answer.text


def test_nobody_waits_for_a_server_that_has_stopped(started):
    server, answers = started(Limits(batch_size=1)), []

    def ask():
        answers.append(server.client.post(CHAT, json=GOOD | {"max_tokens": 200, "logit_bias": {"2": -100}}))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    while server.engine.running + server.engine.waiting < 3:
        time.sleep(0.01)
    server.engine.stop()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {500} and "was stopped" in answers[0].text
    assert server.client.post(CHAT, json=GOOD).status_code == 503
    assert server.client.get("/health").status_code == 503
