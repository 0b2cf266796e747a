"""Adapters come and go while answers are written, and each answer is that of the adapter that it began with."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient

from rankwise.adapters.formats.peft import lay_peft
from rankwise.errors import TargetError
from rankwise.inference.batch import GrowingBatch
from rankwise.runs.records import silent
from rankwise.serving import changes as changing
from rankwise.serving.app import Server
from rankwise.serving.changes import Changes, loading_routes
from rankwise.serving.engine import Limits, ServingEngine
from rankwise.serving.served import load_serving

CHAT = "/v1/chat/completions"
RUNS = ("lora", "adalora", "dora")


def question(model, number=1, **more):
    messages = [{"role": "user", "content": f"What is land {number}?"}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 12} | more


def text_of(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


@pytest.fixture
def open_server(home):
    """A server of the base alone, which may load what lies below `runs`."""
    with contextlib.chdir(home):
        serving = load_serving([], silent, base="tiny-llama", dtype="float32")
    serving.model.module.eval()
    engine = ServingEngine(serving.model.module, serving.rows, Limits(waiting=500))
    engine.start()
    changes = Changes(serving, engine, folder=home / "runs")
    app = Server(serving, engine, 24, loading_routes(changes)).app(key=None, host="127.0.0.1")
    client = TestClient(app, base_url="http://127.0.0.1:8000")

    def load(name, path=None, **more):
        return client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path or name} | more)

    def unload(name):
        return client.post("/v1/unload_lora_adapter", json={"lora_name": name})

    with contextlib.chdir(home):
        yield SimpleNamespace(client=client, engine=engine, serving=serving, load=load, unload=unload, app=app)
    engine.stop()


@pytest.fixture
def references(server):
    """Answers of the three runs as they are served from the start."""

    def of(name, number=1):
        return text_of(server.client.post(CHAT, json=question(name, number)))

    return of


def settled(server):
    """Once the engine has discarded what nobody needs."""
    end = time.monotonic() + 20
    while server.engine.running or server.engine._retired:
        assert time.monotonic() < end
        time.sleep(0.01)
    server.engine.between(lambda: None)


def test_an_adapter_is_loaded_asked_and_removed_and_the_base_is_what_it_was(open_server, references):
    tree = {path: id(module) for path, module in open_server.serving.model.module.named_modules()}
    base = text_of(open_server.client.post(CHAT, json=question("tiny-llama")))
    assert open_server.client.post(CHAT, json=question("lora")).status_code == 404
    for name in RUNS:
        assert open_server.load(name).text == f"Success: LoRA adapter '{name}' added successfully."
    listed = open_server.client.get("/v1/models").json()["data"]
    assert [one["id"] for one in listed] == ["tiny-llama", *RUNS] and listed[1]["parent"] == "tiny-llama"
    for name in RUNS:
        answer = open_server.client.post(CHAT, json=question(name))
        assert (
            text_of(answer) == references(name)
            and answer.json()["system_fingerprint"] == listed[1 + RUNS.index(name)]["sha256"]
        )
    for name in RUNS:
        assert open_server.unload(name).text == f"Success: LoRA adapter '{name}' removed successfully."
        assert open_server.client.post(CHAT, json=question(name)).status_code == 404
    settled(open_server)
    assert {path: id(module) for path, module in open_server.serving.model.module.named_modules()} == tree
    assert text_of(open_server.client.post(CHAT, json=question("tiny-llama"))) == base


def test_an_answer_ends_with_the_adapter_that_it_began_with(open_server, references):
    """Replaced and removed in the middle of an answer; what is asked afterwards gets the new one."""
    open_server.load("it", "lora")
    asked, began = [], threading.Event()
    take = open_server.engine._step

    def slow(key):
        began.set()
        time.sleep(0.03)
        take(key)

    open_server.engine._step = slow
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(open_server.client.post, CHAT, json=question("it"))
        assert began.wait(20)
        assert open_server.load("it", "dora", load_inplace=True).status_code == 200
        assert not asked.done()
        new = open_server.client.post(CHAT, json=question("it"))
        assert open_server.unload("it").status_code == 200
        assert text_of(new) == references("dora") and text_of(asked.result()) == references("lora")
    assert references("lora") != references("dora")
    settled(open_server)
    assert not open_server.serving.adapters.names


def test_an_adapter_stays_while_a_question_about_it_is_written(open_server):
    """Between the choice of a model and the question's turn, no answer needs the adapter yet."""
    server, engine = open_server, open_server.engine
    server.load("it", "lora")
    chosen = server.serving.models["it"]
    text_of(server.client.post(CHAT, json=question("it")))
    engine.between(lambda: None)  # the engine's thread has kept what it read
    assert chosen.adapter in {one.adapter for one in engine._prefixes._read}
    with engine.leased(lambda: chosen):
        assert server.unload("it").status_code == 200
        engine.between(lambda: None)  # the engine's thread has looked at what is retired
        engine.between(lambda: None)
        assert chosen.adapter in server.serving.adapters.names
    settled(server)
    assert chosen.adapter not in server.serving.adapters.names
    assert chosen.adapter not in {one.adapter for one in engine._prefixes._read}, "what it read goes with it"


def test_an_adapter_stays_while_a_prompt_is_read_in_parts(open_server, references, monkeypatch):
    server, parts, read = open_server, [], GrowingBatch.read
    server.engine.limits = Limits(reading=4)
    server.load("it", "lora")

    def reads(*given):
        parts.append(given)
        if len(parts) == 2:
            assert server.unload("it").status_code == 200
        return read(*given)

    monkeypatch.setattr(GrowingBatch, "read", reads)
    assert text_of(server.client.post(CHAT, json=question("it"))) == references("lora")
    assert len(parts) > 3
    settled(server)
    assert not server.serving.adapters.names


def test_only_the_engine_s_thread_walks_the_model_while_an_adapter_is_loaded(open_server, monkeypatch):
    """Elsewhere the walk could meet a change of the model, which ends it with an error."""
    module, threads = open_server.serving.model.module, set()

    def walked(*arguments, **named):
        threads.add(threading.current_thread().name)
        return type(module).named_modules(module, *arguments, **named)

    monkeypatch.setattr(module, "named_modules", walked)
    assert open_server.load("lora").status_code == 200
    assert threads == {"rankwise-engine"}


def test_right_adapter_while_others_come_and_go(open_server, references):
    """Five names change their meaning all the time; an answer and its hash belong together."""
    hashes, stop, changed = {}, threading.Event(), []
    for name in RUNS:
        open_server.load(name)
    for one in open_server.client.get("/v1/models").json()["data"][1:]:
        hashes[one["sha256"]] = one["id"]
    expected = {(name, number): references(name, number) for name in RUNS for number in range(4)}

    def change():
        turn = 0
        while not stop.is_set():
            answer = open_server.load("moving", RUNS[turn % 3], load_inplace=True)
            assert answer.status_code == 200, answer.text
            turn += 1
            changed.append(turn)

    with ThreadPoolExecutor(9) as pool:
        open_server.load("moving", "lora")
        changer = pool.submit(change)

        def ask(at):
            answer = open_server.client.post(CHAT, json=question("moving" if at % 2 else RUNS[at % 3], at % 4))
            text = text_of(answer)
            name = hashes[answer.json()["system_fingerprint"]]
            return text == expected[name, at % 4] and (at % 2 == 1 or name == RUNS[at % 3])

        right = list(pool.map(ask, range(36)))
        stop.set()
        changer.result()
    assert all(right) and len(changed) > 5 and open_server.engine.counts.failed == 0
    settled(open_server)
    assert len(open_server.serving.adapters.names) == 4


def test_what_may_not_be_loaded_changes_nothing(open_server, home, tmp_path, monkeypatch):
    shutil.copytree(home / "runs" / "lora" / "adapter", tmp_path / "outside")
    runs = home / "runs"
    (runs / "link").symlink_to(tmp_path / "outside")
    for name, change in (("torn", lambda file: file.write_bytes(file.read_bytes()[:-9])), ("narrow", narrowed)):
        shutil.copytree(tmp_path / "outside", runs / name)
        change(runs / name / "adapter_model.safetensors")
    (runs / "other").mkdir()
    before = {path: id(module) for path, module in open_server.serving.model.module.named_modules()}
    refused = {
        "../outside": "below the folder", str(tmp_path / "outside"): "below the folder", "link": "below the folder",
        "/etc/passwd": "below the folder", ".": "below the folder", "a\0b": "below the folder", "nothing": "no run",
        "torn": "", "narrow": "", "other": "",
    }  # fmt: skip
    for path, why in refused.items():
        answer = open_server.load("new", path)
        assert answer.status_code == 400 and why in answer.json()["error"]["message"], (path, answer.text)
    for name in ("../x", "", "a b", "x" * 300):
        assert open_server.load(name, "lora").status_code == 400
    assert "is the base" in open_server.load("tiny-llama", "lora", load_inplace=True).json()["error"]["message"]
    assert "is the base" in open_server.unload("tiny-llama").json()["error"]["message"]
    assert open_server.unload("nothing").status_code == 404
    wrong = open_server.client.post("/v1/unload_lora_adapter", json={"lora_name": "lora", "lora_int_id": 3})
    assert wrong.status_code == 400 and "lora_int_id" in wrong.json()["error"]["message"]
    assert {path: id(module) for path, module in open_server.serving.model.module.named_modules()} == before
    monkeypatch.setattr(changing, "MOST", 1)
    assert open_server.load("lora").status_code == 200
    assert "already" in open_server.load("lora").json()["error"]["message"]
    assert "in memory already" in open_server.load("dora").json()["error"]["message"]
    for name in ("link", "torn", "narrow", "other"):
        (runs / name).unlink() if name == "link" else shutil.rmtree(runs / name)


def narrowed(file):
    """Factors of another width than the model's in the last layer alone."""
    tensors = load_file(file)
    last = sorted(name for name in tensors if "layers.1" in name and "lora_A" in name)[-1]
    save_file(tensors | {last: tensors[last][:, :-1].contiguous()}, file, {"format": "pt"})


def test_a_server_that_was_not_asked_for_it_has_no_such_routes(server):
    for route in ("load", "unload"):
        assert (
            server.client.post(f"/v1/{route}_lora_adapter", json={"lora_name": "x", "lora_path": "y"}).status_code
            == 404
        )


def test_an_adapter_over_a_module_that_another_one_trained_whole_is_refused(home, tmp_path):
    """It was a traceback: a shape that did not fit."""
    folders = {}
    weights = load_file(home / "tiny-llama" / "model.safetensors")["model.embed_tokens.weight"]
    rows, width = weights.shape
    files = {
        "whole": {"base_model.model.model.embed_tokens.weight": weights + 1},
        "factors": {"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, rows),
                    "base_model.model.model.embed_tokens.lora_embedding_B": torch.ones(width, 2)},
    }  # fmt: skip
    settings = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 2,
        "base_model_name_or_path": "tiny-llama",
        "task_type": "CAUSAL_LM",
    }
    query = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, width),
             "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": torch.ones(width, 2)}  # fmt: skip
    for name, tensors in files.items():
        folders[name] = tmp_path / name
        folders[name].mkdir()
        whole = name == "whole"
        own = {
            "target_modules": ["model.layers.0.self_attn.q_proj"] if whole else ["embed_tokens"],
            "modules_to_save": ["embed_tokens"] if whole else None,
        }
        (folders[name] / "adapter_config.json").write_text(json.dumps(settings | own))
        save_file(tensors | (query if whole else {}), folders[name] / "adapter_model.safetensors", {"format": "pt"})
    with contextlib.chdir(home):
        for order in (("whole", "factors"), ("factors", "whole")):
            model = load_serving([], silent, base="tiny-llama", dtype="float32").model.module
            adapters = lay_peft(model, folders[order[0]], name="first")
            with pytest.raises(TargetError, match=r"embed_tokens.*Use them apart"):
                lay_peft(model, folders[order[1]], name="second", into=adapters)
            assert adapters.names == ("first",)
