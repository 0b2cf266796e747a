"""OpenAI's own client, unchanged, from a file on its disk to an answer of the model that was trained on it here."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

openai = pytest.importorskip("openai", reason="the official client is not installed")
pytest.importorskip("python_multipart", reason="python-multipart (rankwise[serve]) is not installed")

from kit.report_runs import made_run  # noqa: E402
from rankwise.inference.tuned_model import load_tuned  # noqa: E402
from rankwise.runs.queue import Queue  # noqa: E402
from rankwise.runs.records import silent  # noqa: E402
from rankwise.serving.app import Server  # noqa: E402
from rankwise.serving.changes import Changes  # noqa: E402
from rankwise.serving.engine import Limits, ServingEngine  # noqa: E402
from rankwise.serving.served import load_serving  # noqa: E402
from rankwise.serving.tuning import files as stored_files  # noqa: E402
from rankwise.serving.tuning.files import Files  # noqa: E402
from rankwise.serving.tuning.jobs import JobFiles, Jobs  # noqa: E402
from rankwise.serving.tuning.routes import Offered, tuning_routes  # noqa: E402


def conversation(number):
    said = [("user", f"What is land {number}?"), ("assistant", f"It is town {number}.")]
    return {"messages": [{"role": role, "content": text} for role, text in said]}


def pair(number):
    answers = {"preferred_output": f"It is town {number}.", "non_preferred_output": "I do not know."}
    question = {"messages": conversation(number)["messages"][:1], "tools": [], "parallel_tool_calls": True}
    return {"input": question} | {name: [{"role": "assistant", "content": text}] for name, text in answers.items()}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


GOOD = lines(conversation(number) | {"parallel_tool_calls": False} for number in range(12))
PAIRS = lines(pair(number) for number in range(8))


@contextlib.contextmanager
def serving(home, **guard):
    """As the command starts it, with a client of OpenAI's library."""
    with contextlib.chdir(home):
        loaded = load_serving([], silent, base="tiny-llama", aliases=("gpt-4o-mini",), dtype="float32")
        loaded.model.module.eval()
        engine = ServingEngine(loaded.model.module, loaded.rows, Limits())
        engine.start()
        files = Files(home / "runs" / ".fine-tuning" / "files")
        changes = Changes(loaded, engine)
        offered = Offered(loaded, changes, Jobs(JobFiles(home / "runs" / ".fine-tuning" / "jobs"), files, Queue()))
        offered.start()
        app = Server(loaded, engine, 24, tuning_routes(offered))
        http = TestClient(app.app(**{"key": "secret", "host": "127.0.0.1"} | guard), base_url="http://127.0.0.1:8000")
        client = openai.OpenAI(api_key="secret", base_url="http://127.0.0.1:8000/v1", http_client=http, max_retries=0)
        try:
            yield SimpleNamespace(client=client, http=http, offered=offered, home=home, app=app, serving=loaded)
        finally:
            offered.stop()
            engine.stop()


@pytest.fixture(scope="module")
def folder(library, tmp_path_factory):
    return library.lay_out(tmp_path_factory.mktemp("tuning") / "home", "short")


@pytest.fixture(scope="module")
def door(folder):
    with serving(folder) as server:
        yield server


@pytest.fixture
def waits_only(door, monkeypatch):
    """Nothing is trained: jobs wait."""
    monkeypatch.setattr(Queue, "start_worker", lambda self: False)
    yield door
    for job in door.client.fine_tuning.jobs.list():
        if job.status not in ("succeeded", "failed", "cancelled"):
            door.client.fine_tuning.jobs.cancel(job.id)


def upload(door, content=GOOD, name="rows.jsonl", purpose="fine-tune"):
    return door.client.files.create(file=(name, content), purpose=purpose)


def refused(call, *args, **values):
    with pytest.raises(openai.APIStatusError) as error:
        call(*args, **values)
    assert 400 <= error.value.status_code < 500, error.value
    return error.value.body["message"]


def ended(client, job, seconds=300):
    end = time.monotonic() + seconds
    while job.status not in ("succeeded", "failed", "cancelled"):
        assert time.monotonic() < end, job
        time.sleep(0.2)
        job = client.fine_tuning.jobs.retrieve(job.id)
    return job


@pytest.mark.slow
def test_from_a_file_to_an_answer_and_again_after_a_restart(door, folder):
    client = door.client
    training, validation = upload(door), upload(door, lines(conversation(n) for n in range(20, 23)), "apart.jsonl")
    assert training.status == "processed" and training.bytes == len(GOOD) and training.filename == "rows.jsonl"
    job = client.fine_tuning.jobs.create(
        model="gpt-4o-mini", training_file=training.id, validation_file=validation.id, suffix="lands", seed=7,
        metadata={"team": "maps"}, integrations=[],
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4}}},
    )  # fmt: skip
    assert job.status in ("queued", "running") and job.fine_tuned_model is None and job.seed == 7
    assert job.hyperparameters.learning_rate_multiplier == 1 and job.method.supervised.hyperparameters.n_epochs == 3
    job = ended(client, job)
    assert job.status == "succeeded", job.error
    name = job.fine_tuned_model
    assert name == f"ft:gpt-4o-mini:rankwise:lands:{job.id[-8:]}" and job.trained_tokens > 0 and job.finished_at
    asking = {"model": name, "messages": conversation(3)["messages"][:1], "temperature": 0, "max_tokens": 12}
    answer = client.chat.completions.create(**asking)
    with contextlib.chdir(folder):
        assert answer.choices[0].message.content == load_tuned(job.id).answer(messages_of(asking), tokens_of(12)).text
    events = client.fine_tuning.jobs.list_events(job.id, limit=50).data
    steps = [event.data for event in events if event.type == "metrics"]
    assert [step["step"] for step in steps] == list(range(9, 0, -1)) and "valid_loss" in steps[0]
    assert events[-1].message.startswith("Created") and events[0].message.endswith("completed")
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert checkpoint.fine_tuned_model_checkpoint == name and checkpoint.metrics.valid_loss > 0
    rows = list(csv.DictReader(io.StringIO(client.files.content(job.result_files[0]).text)))
    assert len(rows) == 9 and float(rows[0]["train_loss"]) == pytest.approx(steps[-1]["train_loss"], abs=1e-5)
    assert [one.id for one in client.fine_tuning.jobs.list(metadata={"team": "maps"})] == [job.id]
    assert not client.fine_tuning.jobs.list(metadata={"team": "none"}).data
    assert "succeeded" in refused(client.fine_tuning.jobs.cancel, job.id)
    with serving(folder) as again:  # as after a restart
        assert (
            again.client.chat.completions.create(**asking).choices[0].message.content
            == answer.choices[0].message.content
        )
        assert name in [one.id for one in again.client.models.list()]
        assert again.client.models.delete(name).deleted
        assert refused(again.client.chat.completions.create, **asking).startswith("no model")
        assert refused(again.client.models.delete, "gpt-4o-mini").startswith("no fine-tuning job")
        assert (folder / "runs" / job.id / "adapter").is_dir()


def messages_of(asking):
    from rankwise.rows.text.example import Message

    return [Message("user", asking["messages"][0]["content"])]


def tokens_of(number):
    from rankwise.config.validation import GenerationConfig

    return GenerationConfig(max_new_tokens=number)


def test_pairs_wait_with_the_settings_that_were_given(waits_only):
    """OpenAI's own form of pairs; a job that waits is paused, resumed and cancelled."""
    client, jobs = waits_only.client, waits_only.client.fine_tuning.jobs
    file = upload(waits_only, PAIRS, "pairs.jsonl")
    settings = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5, "beta": 0.2}
    method = {"type": "dpo", "dpo": {"hyperparameters": settings}, "supervised": None, "reinforcement": None}
    job = jobs.create(model="tiny-llama", training_file=file.id, method=method)
    (waiting,) = Queue(waits_only.home / "runs").waiting()
    given = waiting.config
    assert (given.run, given.objective, given.preference.beta) == (job.id, "preference", 0.2)
    assert (given.training.epochs, given.training.batch_size, given.training.seed) == (2, 4, job.seed)
    assert given.training.learning_rate == pytest.approx(0.5 * 2e-4 * (576 / 32) ** 0.8)
    assert job.status == "queued" and job.method.dpo.hyperparameters.beta == 0.2
    assert "still needs this file" in refused(client.files.delete, file.id)
    paused = jobs.pause(job.id)
    assert paused.status == "paused" and not Queue(waits_only.home / "runs").waiting()
    assert jobs.resume(job.id).status == "queued" and jobs.cancel(job.id).status == "cancelled"
    assert jobs.list_events(job.id).data[0].message == "The job was cancelled"
    assert client.files.delete(file.id).deleted and refused(client.files.retrieve, file.id).startswith(
        "there is no file"
    )


def test_all_problems_of_a_file_are_told_with_their_lines_and_nothing_is_stored(door):
    before = [one.id for one in door.client.files.list()]
    rows = [conversation(1), {"messages": []}, {"messages": [{"role": "root", "content": "x"}]}, conversation(2)]
    message = refused(upload, door, lines(rows), "../../mine.jsonl")
    assert message.endswith("2 of 4 rows cannot be used. Repair them, or leave them out.")
    assert "mine.jsonl:2" in message and "mine.jsonl:3" in message and str(door.home) not in message
    broken = [pair(1), {"input": {}, "preferred_output": []}, pair(2) | {"extra": 1}, pair(3)]
    message = refused(upload, door, lines(broken), "pairs.jsonl")
    assert "pairs.jsonl:2" in message and "pairs.jsonl:3" in message and "'extra'" in message
    half = lines([pair(1)]).replace(b"town 1", b"\\ud800")
    assert "pairs.jsonl:2" in refused(upload, door, lines([pair(2)]) + half, "pairs.jsonl")
    same = pair(1) | {"non_preferred_output": pair(1)["preferred_output"]}
    assert "pairs.jsonl:2" in refused(upload, door, lines([pair(2), same]), "pairs.jsonl")
    for content in (b"", b"\xff\xfe\x00", b"not json\n", b"[" * 100_000):
        assert refused(upload, door, content)
    assert [one.id for one in door.client.files.list()] == before
    assert not [path for path in (door.home / "runs" / ".fine-tuning" / "files").iterdir() if path.name[0] == "."]


def test_what_is_uploaded_is_given_back_byte_for_byte_under_its_last_name(door):
    for name, shown in (("a/b\\c.jsonl", "c.jsonl"), ("\x1b[31mred.jsonl", "?[31mred.jsonl"), ("é" * 300, "é" * 255)):
        content = GOOD + b"\n"
        file = stored(door, name, content)
        assert file["filename"] == shown and door.client.files.content(file["id"]).read() == content
        door.client.files.delete(file["id"])
    files = [upload(door, name=f"{number}.jsonl").id for number in range(3)]
    every = [one.id for one in door.client.files.list(purpose="fine-tune", limit=2)]  # the client turns the pages
    assert set(files) <= set(every) and len(every) == len(set(every))
    for file in files:
        door.client.files.delete(file)


def stored(door, name, content):
    answer = door.http.post(
        "/v1/files", files={"file": (name, content)}, data={"purpose": "fine-tune"},
        headers={"authorization": "Bearer secret"},
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    return answer.json()


WRONG = {
    "an unknown model": ({"model": "gpt-5"}, "no model"), "no file": ({"training_file": "file-x"}, "no file"),
    "a path": ({"training_file": "../../etc/passwd"}, "no file"),
    "reinforcement": ({"method": {"type": "reinforcement", "reinforcement": {"grader": {}}}}, "graders"),
    "both places": ({"method": {"type": "supervised"}, "hyperparameters": {"n_epochs": 1}}, "earlier place"),
    "another method's": ({"method": {"type": "supervised", "dpo": {}}}, "another method"),
    "two methods": ({"method": {"type": "dpo", "supervised": {}, "dpo": None}}, "another method"),
    "51 epochs": ({"hyperparameters": {"n_epochs": 51}}, "n_epochs"),
    "true": ({"hyperparameters": {"n_epochs": True}}, "n_epochs"),
    "rate 0": ({"hyperparameters": {"learning_rate_multiplier": 0}}, "learning_rate_multiplier"),
    "NaN": ({"hyperparameters": {"learning_rate_multiplier": "NaN"}}, "learning_rate_multiplier"),
    "beta of answers": ({"hyperparameters": {"beta": 0.1}}, "beta"), "seed": ({"seed": -1}, "seed"),
    "suffix": ({"suffix": "../x"}, "suffix"), "long suffix": ({"suffix": "x" * 65}, "suffix"),
    "wandb": ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "other services"),
    "metadata": ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
    "a long key": ({"metadata": {"k" * 65: "x"}}, "metadata"), "unknown": ({"n_epochs": 3}, "n_epochs"),
    "pairs": ({"method": {"type": "dpo"}}, "method supervised learns"),
}  # fmt: skip


def test_every_wrong_field_of_a_job_is_refused_by_name(waits_only):
    good = {"model": "tiny-llama", "training_file": upload(waits_only).id}
    for name, (change, why) in WRONG.items():
        answer = waits_only.http.post(
            "/v1/fine_tuning/jobs", json=good | change, headers={"authorization": "Bearer secret"}
        )
        assert answer.status_code in (400, 404) and why in answer.json()["error"]["message"], (name, answer.text)
    assert not Queue(waits_only.home / "runs").waiting()
    for parameter in ("limit=0", "limit=x", "after=nothing", "order=up", "colour=red"):
        for route in ("files", "fine_tuning/jobs"):
            answer = waits_only.http.get(f"/v1/{route}?{parameter}", headers={"authorization": "Bearer secret"})
            assert answer.status_code == 400, (route, parameter)


def test_limits_of_uploads(door, monkeypatch):
    assert "evaluations" in refused(upload, door, purpose="evals")
    assert "expires_after" in refused(
        door.client.files.create, file=("x.jsonl", GOOD), purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )  # fmt: skip
    auth = {"authorization": "Bearer secret"}
    assert door.http.post("/v1/files", json={}, headers=auth).status_code == 415
    torn = {"content-type": "multipart/form-data; boundary=x"} | auth
    for content in (b"", b"--x\r\n", b"--y\r\n\r\n", b"\xff" * 1000):
        assert door.http.post("/v1/files", content=content, headers=torn).status_code == 400
    assert (
        door.http.post("/v1/files", content=b"x", headers=auth | {"content-type": "multipart/form-data"}).status_code
        == 400
    )
    monkeypatch.setattr("rankwise.serving.tuning.files.LARGEST_FILE", 100)
    monkeypatch.setattr("rankwise.serving.tuning.files.FORM_BYTES", 100)
    assert refused(upload, door).startswith("the file has more than")
    monkeypatch.undo()
    monkeypatch.setattr(stored_files, "MOST_FILES", 0)
    assert "Delete some" in refused(upload, door)


def test_every_route_needs_the_key(door):
    for route in door.app.further:
        path = route.path.replace("{id}", "file-" + "0" * 24).replace("{name:path}", "x")
        for method in route.methods - {"HEAD"}:
            for headers in ({}, {"authorization": "Bearer wrong"}):
                assert door.http.request(method, path, headers=headers).status_code == 401, (method, path)


@pytest.mark.slow
def test_a_running_job_is_paused_resumed_and_cancelled(door):
    """Its training has stopped once it is said to be paused."""
    jobs = door.client.fine_tuning.jobs
    settings = {"n_epochs": 50, "batch_size": 1}
    job = jobs.create(model="tiny-llama", training_file=upload(door).id, hyperparameters=settings)
    end = time.monotonic() + 200
    while not any(event.type == "metrics" for event in jobs.list_events(job.id).data):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert jobs.retrieve(job.id).status == "running" and jobs.retrieve(job.id).estimated_finish
    assert jobs.pause(job.id).status == "paused" and Queue(door.home / "runs").working() is None
    assert jobs.resume(job.id).status in ("queued", "running")
    assert jobs.cancel(job.id).status == "cancelled" and Queue(door.home / "runs").working() is None
    assert jobs.list_events(job.id).data[0].message == "The job was cancelled"


@pytest.mark.parametrize(("file", "before", "after"), [
    ("manifest.json", '"started": "', '"started": "not '), ("manifest.json", '"ended": "', '"ended": "not '),
    ("metrics.jsonl", '"loss":', '"loss": NaN, "was":'), ("metrics.jsonl", '"seconds":', '"seconds": 1e999, "was":'),
    ("metrics.jsonl", '"step":', '"step": 0, "was":'),
])  # fmt: skip
def test_a_run_that_was_damaged_by_hand_breaks_no_list(waits_only, file, before, after):
    client = waits_only.client.fine_tuning.jobs
    job = client.create(model="tiny-llama", training_file=upload(waits_only).id)
    made_run(job.id, steps=3)
    damaged = Path("runs", job.id, file)
    text = damaged.read_text()
    assert before in text
    damaged.write_text(text.replace(before, after))
    assert client.retrieve(job.id).status == "succeeded" and client.list().data
    assert client.list_events(job.id).data and client.checkpoints.list(job.id).data
