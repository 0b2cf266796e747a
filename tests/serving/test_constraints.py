"""Answers of a server are what the request, its tools, or the rows of the run allow, whole and piece by piece."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from dataclasses import replace
from types import SimpleNamespace
from typing import Literal

import jsonschema_rs
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from kit.families import BY_NAME, Family, template_of, written_by
from kit.served_families import INST, WITH_IDS, WITHOUT_IDS
from rankwise.base.starters import STARTERS
from rankwise.cli.main import app
from rankwise.config.data import Constraint
from rankwise.constraints.constraint import grammar_of, problem_with
from rankwise.constraints.matcher import Matcher, Vocabulary, follows
from rankwise.rows.text.example import calls_in
from rankwise.runs.records import silent
from rankwise.serving import trial
from rankwise.serving.app import Server
from rankwise.serving.bodies import BadRequest, ChatBody
from rankwise.serving.calls import form_of
from rankwise.serving.constraining import calls_constraint
from rankwise.serving.engine import Limits, ServingEngine
from rankwise.serving.served import load_serving
from rankwise.serving.trial import TrialProcess
from rankwise.studio.answering import load
from rankwise.studio.asking import AskBody

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
WORD = {"type": "string", "pattern": "^[a-z]{1,6}$"}
PERSON = {
    "type": "object",
    "properties": {"name": WORD, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"],
}  # fmt: skip
CITY = {
    "$defs": {"word": WORD},
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/word"}},
    "required": ["city"],
}
DAYS = {"type": "object", "properties": {"days": {"enum": [1, 2, 3]}}, "required": ["days"]}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY, "strict": True}},
    {"type": "function", "function": {"name": "weather_of_days", "parameters": DAYS, "strict": True}},
]
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
CHOICES, REGEX, GRAMMAR = ["yes", "yes, please", "no"], "[a-c]{3}-[0-9]{2}", 'start: "say " ("fox" | "dog")'
SCHEMA = Constraint(kind="schema", text=json.dumps(PERSON))
KINDS = {
    "json_schema": ({"response_format": FORMAT}, SCHEMA),
    "json_object": ({"response_format": {"type": "json_object"}}, Constraint(kind="schema", text='{"type": "object"}')),
    **{f"{before}{name}": ({field: {name: value} if field == "structured_outputs" else value}, held)
       for name, value, held in (
           ("json", PERSON, SCHEMA), ("json", json.dumps(PERSON), SCHEMA),
           ("choice", CHOICES, Constraint(kind="choices", text=json.dumps(CHOICES))),
           ("regex", REGEX, Constraint(kind="regex", text=REGEX)),
           ("grammar", GRAMMAR, Constraint(kind="grammar", text=GRAMMAR)),
       ) for before, field in (("structured ", "structured_outputs"), ("guided ", f"guided_{name}"))},
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tiny_folder, tmp_path_factory):
    """A base whose template writes tools, and a run that was trained with a schema."""
    home = tmp_path_factory.mktemp("constrained")
    shutil.copytree(tiny_folder, home / "tiny")
    settings = json.loads((home / "tiny/config.json").read_text()) | {"max_position_embeddings": 4096}
    (home / "tiny/config.json").write_text(json.dumps(settings))
    (home / "tiny/chat_template.jinja").write_text(BY_NAME["qwen2"].template)
    (home / "person.json").write_text(json.dumps(PERSON))
    rows = [{"prompt": f"Who is {n}?", "completion": json.dumps({"name": "abcdef"[: n % 6 + 1], "age": n})}
            for n in range(20)]  # fmt: skip
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model", "tiny", "--data", "rows.jsonl", "--steps", "4", "--schema", "person.json", "--run", "people",
             "--prompt", "Question: {prompt} Answer:", "--completion", "{completion}"]  # fmt: skip
    with chdir(home):
        made = CliRunner().invoke(app, ["train", *words, "--held-out", "2", "--set", "model.dtype=float32"])
    assert made.exit_code == 0, made.output
    return home


@pytest.fixture(scope="module")
def loaded(home):
    with chdir(home), pytest.MonkeyPatch.context() as patched:
        patched.setitem(STARTERS, "small", replace(STARTERS["smollm2-135m"], name="small", hub_id="tiny"))
        serving = load_serving(["people"], silent)
    serving.model.module.eval()
    return serving


@pytest.fixture(scope="module", autouse=True)
def patience():
    """Enough for a machine that does much else."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trial, "PATIENCE", 60)
        yield


@pytest.fixture(scope="module")
def server(loaded):
    engine = ServingEngine(loaded.model.module, loaded.rows, Limits())
    engine.start()
    app = Server(loaded, engine, 200).app(key=None, host="127.0.0.1")
    yield SimpleNamespace(client=TestClient(app, base_url="http://127.0.0.1:8000"), engine=engine)
    engine.stop()


def asking(text="hi", **more):
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "temperature": 0} | more


def choice(server, body, route=CHAT):
    answer = server.client.post(route, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def streamed(server, body):
    """The text or the calls of a stream, and why it ended."""
    lines = server.client.post(CHAT, json=body | {"stream": True}).text.split("\n\n")
    parts = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-2]]
    calls = [call["function"] for part in parts for call in part["delta"].get("tool_calls", ())]
    return "".join(part["delta"].get("content") or "" for part in parts), calls, parts[-1]["finish_reason"]


def functions(made):
    return [call["function"] for call in made["message"].get("tool_calls", ())]


@pytest.mark.parametrize("name", KINDS)
def test_answers_are_what_was_asked_for_whole_in_pieces_and_as_a_continuation(server, name):
    asked, held = KINDS[name]
    for temperature in (0, 1.3):
        body = asking(temperature=temperature, seed=3, **asked)
        made = choice(server, body)
        text = made["message"]["content"]
        assert streamed(server, body) == (text, [], made["finish_reason"])
        assert made["finish_reason"] == ("length" if problem_with(held, text) else "stop")
        assert made["finish_reason"] == "stop" or name == "json_object"
        cut = choice(server, body | {"max_tokens": 2})
        assert cut["finish_reason"] == "length" or not problem_with(held, cut["message"]["content"])
    if "response_format" not in asked:
        assert not problem_with(
            held, choice(server, {"model": "people", "prompt": "a", "max_tokens": 99} | asked, TEXT)["text"]
        )


def test_an_answer_that_breaks_its_schema_is_not_called_complete(server):
    schema = {"type": "string", "pattern": r"^[\x00-\x1f]{2}$"}
    held, ends = Constraint(kind="schema", text=json.dumps(schema)), set()
    for seed in range(8):
        body = asking(temperature=2, seed=seed, guided_json=schema)
        made = choice(server, body)
        ends.add(made["finish_reason"])
        assert made["finish_reason"] == ("length" if problem_with(held, made["message"]["content"]) else "stop")
        assert streamed(server, body)[::2] == (made["message"]["content"], made["finish_reason"])
    assert "length" in ends


def test_a_token_that_had_to_follow_is_listed_as_certain(server):
    listed = choice(server, asking(response_format=FORMAT, logprobs=True, top_logprobs=2))["logprobs"]["content"]
    assert all(isinstance(one["logprob"], float) for one in listed) and any(one["logprob"] == 0 for one in listed)


@pytest.mark.parametrize("wanted", ["required", "weather", "weather_of_days", "one"])
@pytest.mark.parametrize("seed", range(3))
def test_a_call_that_is_required_is_one_with_its_schema(server, wanted, seed):
    named = {"type": "function", "function": {"name": wanted}}
    several = {"tool_choice": named if "weather" in wanted else "required", "parallel_tool_calls": wanted != "one"}
    body = asking(tools=TOOLS, temperature=1.0, seed=seed, max_tokens=300, **several)
    made = choice(server, body)
    calls = functions(made)
    assert (made["finish_reason"], made["message"]["content"]) == ("tool_calls", None)
    assert streamed(server, body) == ("", calls, "tool_calls")
    schemas = {one["function"]["name"]: one["function"]["parameters"] for one in TOOLS}
    assert all(jsonschema_rs.is_valid(schemas[one["name"]], json.loads(one["arguments"])) for one in calls)
    assert calls and (wanted == "required" or len(calls) == 1)
    assert "weather" not in wanted or calls[0]["name"] == wanted
    cut = choice(server, body | {"max_tokens": 12})
    assert cut["finish_reason"] == "length" and not functions(cut)


def test_with_a_format_an_answer_is_of_it_or_a_call(server, loaded):
    (less,) = loaded.model.tokenizer.encode("<")
    body = asking(tools=TOOLS, response_format=FORMAT)
    made = choice(server, body | {"logit_bias": {less: -100}})
    assert made["finish_reason"] == "stop" and not problem_with(SCHEMA, made["message"]["content"])
    called = choice(server, body | {"logit_bias": {less: 100}, "parallel_tool_calls": False})
    assert called["finish_reason"] == "tool_calls" and len(functions(called)) == 1
    assert choice(server, body | {"tool_choice": "none"})["finish_reason"] == "stop"


PLAIN_CALLS = """\
{%- for m in messages -%}
{%- if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one call at once') }}{% endif -%}
{{ '<|' + m.role + '|>\\n' }}
{%- for call in m.tool_calls or [] -%}
{{ '{"name": "' + call.function.name + '", "parameters": ' }}{{ call.function.arguments | tojson }}{{ '}' }}
{%- endfor -%}
{{ m.content + eos_token + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}"""
FORMS = {
    "Hermes": (template_of(replace(BY_NAME["qwen2"], words=()), "qwen"),
               '<tool_call>\n{"name": "weather", "arguments": {"city": "rome"}}\n</tool_call>', "\n"),
    "Mistral": (template_of(Family("tools", WITHOUT_IDS, "</s>", (), system=False), "gpt2"),
                '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "rome"}}]', None),
    "Llama": (written_by(BY_NAME["zephyr"], "gpt2", PLAIN_CALLS),
              '{"name": "weather", "parameters": {"city": "rome"}}', None),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_an_answer_that_begins_a_call_goes_on_with_a_valid_one_in_the_templates_form(name):
    template, call, between = FORMS[name]
    held = calls_constraint(ChatBody(**asking()), TOOLS, form_of(template), template.tokenizer)
    assert held is not None
    for right in (call, "A plain answer.", "", "{1, 2} < 3", *([f"I look.\n{call}{between}{call}"] if between else [])):
        assert follows(grammar_of(held), right), right
        assert calls_in(right, ("weather",))[1] or "weather" not in right
    for wrong in (
        call.replace("city", "town"),
        call.replace("weather", "other"),
        call[:-1],
        f"{call} more",
        call[:-12],
    ):
        assert not follows(grammar_of(held), wrong), wrong
    free = [tool["function"] | {"strict": False} for tool in TOOLS]
    assert calls_constraint(ChatBody(**asking()), [{"function": one} for one in free], None, template.tokenizer) is None


MARKED = {
    "special": (Family("tools", WITH_IDS.replace("'abcdefghi') + call.function.name", "'abcdefghi')"), "</s>", INST,
                       system=False), "gpt2", "[TOOL_CALLS] [", "]", '}, "id": "abcd12345"}'),
    "not special, as Qwen's": (BY_NAME["qwen2"], "qwen", "<tool_call>\n", "\n</tool_call>", "}}"),
}  # fmt: skip


@pytest.mark.parametrize("name", MARKED)
def test_marks_that_are_tokens_of_their_own_and_ids_are_written_as_the_template_does(name):
    family, kind, opening, closing, tail = MARKED[name]
    template, text = (
        template_of(family, kind),
        f'{opening}{{"name": "weather_of_days", "arguments": {{"days": 2{tail}{closing}',
    )
    form = form_of(template)
    assert form is not None and (form.opening, form.closing) == (opening, closing)
    assert template.tokenizer.encode(opening)[0] in template.tokenizer.hub.added_tokens_decoder
    held = calls_constraint(ChatBody(**asking(tools=TOOLS, tool_choice="required")), TOOLS, form, template.tokenizer)
    assert held is not None
    tokenizer = template.tokenizer
    matcher = Matcher(
        Vocabulary(tokenizer.hub.backend_tokenizer.to_str(), len(tokenizer.hub), template.end_ids), grammar_of(held)
    )
    ahead, forced = [*tokenizer.encode(text), template.end_ids[0]], matcher.forced()
    while ahead:
        assert ahead[: len(forced)] == forced and matcher.problem is None
        ahead = ahead[len(forced) :]
        if ahead:
            assert matcher.allowed()[ahead[0]]
            forced = [ahead[0], *matcher.take(ahead[0])]
    assert form_of(template_of(BY_NAME["chatml"], "gpt2")) is None


BAD = {
    "json_schema alone": ({"response_format": {"type": "json_schema"}}, "json_schema"),
    "a schema of another type": ({"response_format": FORMAT | {"type": "json_object"}}, "json_schema"),
    "no schema": ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, '"schema"'),
    "an empty one": ({"response_format": {"type": "json_schema", "json_schema": {}}}, '"schema"'),
    "a schema that is none": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strin"}}}},
        "response_format.json_schema.schema: "),
    "a typing error inside": ({"guided_json": {"properties": {"a": {"minimun": 1}}}}, "guided_json: "),
    "a schema that is no object": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": [1]}}}, "a JSON object"),
    "a remote reference": (
        {"structured_outputs": {"json": {"$ref": "https://example.org/a"}}}, "structured_outputs.json: "),
    "a regex that is none": ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex: "),
    "a regex that is an object": ({"structured_outputs": {"regex": {}}}, "structured_outputs.regex"),
    "an unknown structure": ({"structured_outputs": {"structural_tag": "x"}}, "structural_tag"),
    "no choice": ({"guided_choice": []}, "guided_choice: "),
    "a grammar that is none": ({"guided_grammar": "x"}, "grammar"),
    "a megabyte": ({"guided_regex": "a" * 300_000}, "characters"),
    "two at once": ({"guided_regex": "a", "response_format": FORMAT}, "each say what the answer may be"),
    "a deep schema": ({"guided_json": json.loads('{"items":' * 400 + "{}" + "}" * 400)}, "guided_json"),
    "terms that never end": (
        {"guided_grammar": "start: T\nT: " + " & ".join(f"/(.{{{n}}})*x?/" for n in (2, 3, 5, 7, 11, 13, 17, 19))},
        "guided_grammar: no answer can be held to this grammar: to compile it takes more than 1 second"),
    "no tools": ({"tool_choice": "required"}, "there are no"),
    **{f"a name like {name!r}"[:40]: ({"tools": [{"name": name}], "tool_choice": "required"}, "names a tool; letters")
       for name in ('a"b\n<|im_end|>', "", "a" * 65, "caf\u00e9")},
    "a name twice": ({"tools": [*TOOLS, TOOLS[0]]}, "several tools have the name 'weather'"),
    "another tool": (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "'x', which is none"),
    "a format for a call": ({"tools": TOOLS, "tool_choice": "required", "response_format": FORMAT}, "leaves no room"),
    "a choice beside tools": ({"tools": TOOLS, "guided_choice": ["a"]}, "leaves no room"),
    "bad parameters": (
        {"tools": [{"name": "f", "strict": True, "parameters": {"properties": {"a": {"type": "strin"}}}}]},
        'the parameters of "f"'),
    "parameters of a text": (
        {"tools": [{"name": "f", "parameters": {"type": "string"}}], "tool_choice": "required"}, "schema of an object"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_held_to_is_refused_in_one_sentence(server, name):
    asked, reason = BAD[name]
    answer = server.client.post(CHAT, json=asking(**asked))
    problem = answer.json()["error"]
    assert answer.status_code == 400 and reason in problem["message"], answer.text
    assert problem["message"].endswith((".", "?")) and len(problem["message"]) < 500 and "\n" not in problem["message"]
    assert server.engine.counts.failed == 0


def test_whoever_goes_takes_the_trial_along_and_refused_texts_cost_nothing_more(server):
    slow, trials = ("grammar", BAD["terms that never end"][0]["guided_grammar"] + " | /gone/", "x"), TrialProcess()

    async def gone():
        leaving = asyncio.create_task(trials.check([slow, ("regex", "a", "x")]))
        while trials._process is None:
            await asyncio.sleep(0.01)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await trials.check([("regex", "b", "x")])
        assert [hash(one) in trials._known for one in (slow, ("regex", "a", "x"))] == [False, False]
        with pytest.raises(BadRequest, match=r"^x: .*more than 1 second"):
            await trials.check([("regex", "c", "x"), slow])
        process = trials._process
        with pytest.raises(BadRequest, match="more than 1 second"):
            await trials.check([slow])
        assert trials._process is process and hash(("regex", "c", "x")) in trials._known

    asyncio.run(gone())
    trials.close()


def test_certain_tokens_beyond_the_longest_answer_are_not_read(server):
    before = server.engine.counts.answer_tokens
    made = choice(server, asking(guided_json={"const": "xy z" * 2000}, max_tokens=3))
    assert made["finish_reason"] == "length" and server.engine.counts.answer_tokens == before + 3


def test_a_starter_has_its_short_name_too(server):
    assert [one["id"] for one in server.client.get("/v1/models").json()["data"]] == ["tiny", "small", "people"]
    assert choice(server, asking() | {"model": "small"})["message"] == choice(server, asking())["message"]


def test_a_run_answers_by_its_rows_schema_and_prompt_as_predict_does_and_its_base_is_free(server, loaded, home):
    questions = [f"Who is {n}?" for n in range(4)]
    made = [choice(server, asking(text, model="people", max_tokens=64)) for text in questions]
    assert all(one["finish_reason"] == "stop" and not problem_with(SCHEMA, one["message"]["content"]) for one in made)
    (home / "ask.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in questions))
    with chdir(home):
        words = ["people", "--data", "ask.jsonl", "--out", "said.jsonl", "--max-new-tokens", "64", "--overwrite"]
        told = CliRunner().invoke(app, ["predict", *words])
    assert told.exit_code == 0, told.output
    said = [json.loads(line) for line in (home / "said.jsonl").read_text().splitlines()]
    assert [one["message"]["content"] for one in made] == [one["prediction"] for one in said]
    put = asking(f"Question: {questions[0]} Answer:", model="people", max_tokens=64)
    assert choice(server, put)["message"] == made[0]["message"]
    drawn = {
        key: one for key, one in asking(questions[0], model="people", max_tokens=64).items() if key != "temperature"
    }
    assert choice(server, drawn)["message"] == made[0]["message"]
    assert problem_with(SCHEMA, choice(server, asking(questions[0], max_tokens=64))["message"]["content"])
    other = choice(server, asking(questions[0], model="people", guided_choice=CHOICES))
    assert other["message"]["content"] in CHOICES
    loaded.unconstrained = True
    free = choice(server, asking(questions[0], model="people", max_tokens=64))
    loaded.unconstrained = False
    assert problem_with(SCHEMA, free["message"]["content"])


def test_the_page_holds_a_run_to_its_schema_and_the_base_beside_it_as_chat_does(home):
    turns, sent = [{"role": "user", "content": "Who is 3?"}], []
    body = AskBody(runs=["people"], sides=[{"run": name, "messages": turns} for name in ("people", "")])
    with chdir(home):
        load(["people"], silent).answer(body, sent.append, threading.Event())
    texts = ["".join(one.get("text", "") for one in sent if one["side"] == side) for side in (0, 1)]
    assert not any(problem_with(SCHEMA, text) for text in texts), sent


def test_eight_clients_with_eight_schemas_at_once(server):
    schemas = [{"type": "object", "properties": {f"field {n}": {"enum": [n, str(n)]}, "word": WORD},
                "required": [f"field {n}", "word"]} for n in range(8)]  # fmt: skip

    def ask(schema):
        return choice(server, asking(temperature=1.0, guided_json=schema))

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(ask, schemas * 3))
    for schema, one in zip(schemas * 3, made, strict=True):
        assert one["finish_reason"] == "stop" and jsonschema_rs.is_valid(schema, json.loads(one["message"]["content"]))


def test_a_constraint_that_takes_too_much_ends_its_own_answer_alone(server):
    parts = "|".join(f"{letter}(?s:.){{{at}}}0" for at, letter in enumerate("abcdefghijklmnopqrstuvwxyz", start=30))
    costly = asking(guided_regex=f"(?s:.*)({parts})", temperature=2.0, seed=1, max_tokens=1500)
    with ThreadPoolExecutor(3) as pool:
        cut = pool.submit(server.client.post, CHAT, json=costly)
        others = [pool.submit(choice, server, asking(guided_json=PERSON, seed=n)) for n in range(6)]
        assert all(not problem_with(SCHEMA, one.result()["message"]["content"]) for one in others)
    problem = cut.result().json()["error"]["message"]
    assert cut.result().status_code == 500 and "cannot be followed any further" in problem
    assert choice(server, asking(guided_json=PERSON))["finish_reason"] == "stop"


def test_openais_client_reads_classes_and_strict_calls(server):
    openai, pydantic = pytest.importorskip("openai"), pytest.importorskip("pydantic")
    person = pydantic.create_model("Person", name=(str, pydantic.Field(pattern="^[a-z]{1,6}$")), age=(Literal[1, 2], 1))
    client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none", http_client=server.client)
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    read = client.chat.completions.parse(**asked, response_format=person).choices[0]
    assert isinstance(read.message.parsed, person) and read.finish_reason == "stop"
    tool = openai.pydantic_function_tool(person, name="save")
    with client.chat.completions.stream(
        **asked, tools=[tool], tool_choice="required", parallel_tool_calls=False
    ) as stream:
        called = stream.get_final_completion().choices[0]
    assert called.finish_reason == "tool_calls"
    assert isinstance(called.message.tool_calls[0].function.parsed_arguments, person)
