"""Answers keep to a constraint, whoever writes beside them, and are what a forward pass for each token gives."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch

from kit.sequence_models import sequence_folder
from rankwise.base.inspection import is_encoder_decoder
from rankwise.base.loading import load
from rankwise.base.sources import find
from rankwise.config.data import Constraint
from rankwise.config.models import ModelConfig
from rankwise.config.validation import GenerationConfig
from rankwise.constraints.constraint import problem_with
from rankwise.errors import ConfigError, EvaluationError
from rankwise.inference.batch import GenerationBatch, GenerationRow, GrowingBatch
from rankwise.inference.generate import answer, answers_in_turn, asking_ids, matcher_of
from rankwise.inference.prefixes import Prefixes
from rankwise.inference.sampling import Sampler, Sampling
from rankwise.objectives.registry import language_model
from rankwise.rows.text.example import Message
from rankwise.runs.records import silent

WORD = {"type": "string", "pattern": "^[a-z]{1,6}$"}
SCHEMAS = {
    "record": {
        "type": "object",
        "properties": {
            "first name": WORD, "age": {"type": "integer", "minimum": 0, "maximum": 120}, "ok": {"type": "boolean"},
        },
        "required": ["first name", "age", "ok"],
    },
    "bounded list": {"type": "array", "items": {"enum": ["red", "green", 3, None]}, "minItems": 2, "maxItems": 4},
    "union": {"anyOf": [
        {"type": "integer", "minimum": 10, "maximum": 99}, {"properties": {"x": WORD}, "required": ["x"]},
    ]},
    "unicode": {"enum": ["h\u00e9llo \u65b0", "\U0001f600 \u00df"]},
    "format": {"type": "string", "format": "date"},
    "recursion": {
        "$defs": {"tree": {
            "type": "object", "required": ["v", "next"],
            "properties": {"v": {"enum": [0, 1]}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]}},
        }},
        "$ref": "#/$defs/tree",
    },
}  # fmt: skip
CONSTRAINTS = [
    *(Constraint(kind="schema", text=json.dumps(schema)) for schema in SCHEMAS.values()),
    Constraint(kind="choices", text='["yes", "yes, please", "no"]'),
    Constraint(kind="choices", text='["the only one"]'),
    Constraint(kind="regex", text="[a-c]{3}-[0-9]{2}"),
    Constraint(kind="grammar", text='start: "say " word (" " word)?\nword: "fox" | "dog"'),
]
LOOSE = [Constraint(kind="schema", text=json.dumps(schema)) for schema in (
    {"type": "string", "pattern": r"^[\x00-\x1f]{2}$"}, {"type": "string", "format": "time"},
    {"type": "object", "minProperties": 3, "maxProperties": 4, "additionalProperties": {"enum": [1]}},
)]  # fmt: skip
"""Of which the engine knows less than the schema says."""
PROMPTS = ["hi", "What is the capital of France?", "the quick brown fox " * 3]


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return load(ModelConfig(name=str(tiny_folder), dtype="float32", device="cpu"))


def sequence_model(kind, folder):
    spec = ModelConfig(name=str(sequence_folder(kind, folder)), dtype="float32", device="cpu")
    return load(spec, silent, language_model(is_encoder_decoder(find(spec, silent).config)).kind)


def prompts_of(model):
    return [asking_ids(model, [Message("user", prompt)]) for prompt in PROMPTS]


def token_by_token(model, ids, constraint, most, start=None):
    """Greedy, each token by a pass over everything so far; forced tokens are the matcher's. A decoder beside an
    encoder begins with `start`."""
    matcher = matcher_of(model, constraint)
    written = matcher.forced()
    while len(written) < most and not set(written) & set(model.template.end_ids):
        with torch.no_grad():
            read = {"input_ids": torch.tensor([[*ids, *written]])} if start is None else {
                "input_ids": torch.tensor([ids]), "decoder_input_ids": torch.tensor([[start, *written]])
            }  # fmt: skip
            logits = model.module(**read).logits[0, -1]
        token = int(logits.masked_fill(~torch.from_numpy(matcher.allowed().copy()), -torch.inf).argmax())
        written += [token, *matcher.take(token)]
    return written[:most]


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda one: f"{one.kind} {one.text[:20]}")
def test_together_and_alone_answers_are_those_of_a_pass_for_each_token(tiny, constraint):
    config = GenerationConfig(max_new_tokens=60, constraint=constraint, repetition_check=False)
    prompts = prompts_of(tiny)
    together = answers_in_turn(tiny, prompts, config)
    expected = [token_by_token(tiny, ids, constraint, 60) for ids in prompts]
    assert [list(one.ids) for one in together] == expected
    assert [answers_in_turn(tiny, [ids], config)[0].text for ids in prompts] == [one.text for one in together]
    for one in together:
        assert one.stopped == ("end" if set(one.ids) & set(tiny.template.end_ids) else "length")
        assert one.stopped == "length" or problem_with(constraint, one.text) is None


@pytest.mark.parametrize("constraint", [*CONSTRAINTS, *LOOSE], ids=lambda one: f"{one.kind} {one.text[:30]}")
def test_drawn_answers_keep_to_it_too(tiny, constraint):
    for temperature, top_p in ((1.0, 1.0), (3.0, 0.5)):
        config = GenerationConfig(
            max_new_tokens=80, constraint=constraint, temperature=temperature, top_p=top_p, seed=1
        )
        found = answers_in_turn(tiny, prompts_of(tiny) * 2, config)
        complete = [one for one in found if one.stopped == "end"]
        assert all(problem_with(constraint, one.text) is None for one in complete)
        assert complete or "tree" in constraint.text or constraint in LOOSE


def test_an_encoder_and_a_decoder_write_by_it(tmp_path):
    model = sequence_model("bart", tmp_path)
    config = GenerationConfig(max_new_tokens=60, constraint=CONSTRAINTS[0])
    found = answers_in_turn(model, prompts_of(model), config)
    assert all(problem_with(CONSTRAINTS[0], one.text) is None for one in found if one.stopped == "end")
    start = model.module.config.decoder_start_token_id
    assert [list(one.ids) for one in found] == [
        token_by_token(model, ids, CONSTRAINTS[0], 60, start) for ids in prompts_of(model)
    ]  # fmt: skip
    assert any(one.stopped == "end" for one in found)


def test_a_tokenizer_that_cannot_be_followed_is_refused(tmp_path):
    model = sequence_model("t5", tmp_path)
    with pytest.raises(ConfigError, match=r"answers of this model cannot be constrained: .*Metaspace"):
        answers_in_turn(model, prompts_of(model), GenerationConfig(constraint=CONSTRAINTS[0]))


def test_a_control_token_is_no_text_that_can_be_asked_for(tiny):
    schema = Constraint(kind="schema", text='{"const": "<|im_start|>"}')
    for constraint in (
        schema,
        Constraint(kind="choices", text='["<|im_start|>x"]'),
        Constraint(kind="regex", text="("),
    ):
        with pytest.raises(ConfigError, match=f"control token|held to this {constraint.kind}"):
            answers_in_turn(tiny, prompts_of(tiny), GenerationConfig(max_new_tokens=9, constraint=constraint))


def test_a_grammar_may_name_tokens_of_the_model(tiny):
    """By numbers beyond those of bytes, as the marks around calls are in the server's grammars."""
    matcher = matcher_of(tiny, Constraint(kind="grammar", text="start: <[300]> <[301]>"))
    assert matcher.forced()[:2] == [300, 301] or matcher.allowed().nonzero()[0].tolist() == [300]


def test_an_answer_whose_constraint_takes_too_much_ends_with_a_sentence(tiny):
    row = GenerationRow([5]).hold_to(matcher_of(tiny, Constraint(kind="regex", text="((a|b|ab){1,2000}){1,2000}c")))
    letter = tiny.tokenizer.encode("a")[0]
    for _ in range(2000):
        if row.problem is None:
            row.follow(row.matcher, letter)
    with pytest.raises(EvaluationError, match=r"cannot be followed any further .*too many") as told:
        row.check()
    assert len(str(told.value)) < 200


def test_what_is_cut_is_incomplete(tiny):
    cut = answer(tiny, [Message("user", "hi")], GenerationConfig(max_new_tokens=3, constraint=CONSTRAINTS[0]))
    assert (cut.stopped, cut.tokens, len(cut.ids)) == ("length", 3, 3)
    assert problem_with(CONSTRAINTS[0], cut.text)


@pytest.mark.parametrize("constraint", CONSTRAINTS[:7], ids=lambda one: f"{one.kind} {one.text[:20]}")
def test_streamed_pieces_joined_are_the_answer(tiny, constraint):
    pieces, config = [], GenerationConfig(max_new_tokens=60, constraint=constraint)
    found = answer(tiny, [Message("user", "hi")], config, on_text=pieces.append)
    assert "".join(pieces) == found.text
    assert answer(tiny, [Message("user", "hi")], config).text == found.text


def test_rows_with_other_constraints_join_and_leave_and_write_what_they_write_alone(tiny):
    def row(number, constraint):
        sampling = Sampling() if number % 2 else Sampling(temperature=1.0, frequency=0.1)
        made = GenerationRow(prompts_of(tiny)[number % 3], sampler=Sampler.seeded(sampling, number))
        return made if constraint is None else made.hold_to(matcher_of(tiny, constraint))

    def written(jobs):
        batch = GrowingBatch(tiny.module, lambda adapters: contextlib.nullcontext(), Prefixes())
        waiting, running = list(jobs), []
        while waiting or running:
            if waiting:
                running.append(waiting.pop())
                batch.join(running[-1])
            ended = [one for one in running if set(one.ids) & set(tiny.template.end_ids) or len(one.ids) > 40]
            batch.leave(ended)
            running = [one for one in running if one not in ended]
            if running:
                batch.step()
        return [cut(one.ids) for one in jobs]

    def cut(ids):
        ends = [at for at, token in enumerate(ids) if token in tiny.template.end_ids]
        return ids[: min([*ends, 40])]

    several = [*CONSTRAINTS, None, None]
    together = written([row(number, one) for number, one in enumerate(several)])
    assert together == [written([row(number, one)])[0] for number, one in enumerate(several)]


def test_forced_tokens_are_read_together(tiny):
    """Fewer passes than tokens, and the same tokens as where each is read alone."""
    passes = []
    handle = tiny.module.register_forward_pre_hook(lambda module, args: passes.append(1))
    rows = [GenerationRow(prompts_of(tiny)[0]).hold_to(matcher_of(tiny, CONSTRAINTS[0]))]
    batch = GenerationBatch(tiny.module)
    try:
        batch.begin(rows)
        while not set(rows[0].ids) & set(tiny.template.end_ids):
            batch.step()
    finally:
        handle.remove()
    assert len(passes) < 0.7 * len(rows[0].ids)
