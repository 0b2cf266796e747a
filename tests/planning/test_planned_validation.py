"""What validation adds to a plan: the weights that decoding lays out once more, and the tokens that are read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.config.experiment import Planned
from rankwise.forward.model_shape import shape_of_config
from rankwise.kernels import prepacked
from rankwise.planning import batches
from rankwise.planning.batches import AtOnce, validation_tokens, writes_answers
from rankwise.planning.devices import this_processor
from rankwise.planning.estimate import Estimate
from rankwise.planning.forecast import forecast
from rankwise.planning.rows import Drawn, PlannedRows
from rankwise.planning.tasks import CLASSIFIER, TASKS
from rankwise.planning.time import Probe, Step, duration
from rankwise.training import validation_prompts

COUNT, ALL, LEARNED = (Estimate.exactly(amount) for amount in (280, 28_000, 14_000))
ROWS = PlannedRows(COUNT, ALL, LEARNED, 0.0, 100, 100, (Drawn((100,), 50, 400),) * 280, exact=True, held_out=60)

NONE = replace(ROWS, held_out=0)


def config(held_out: int = 60, model: Any = "smollm2-135m", **settings) -> Planned:
    data = {"path": "rows.jsonl", "held_out": held_out}
    return Planned.model_validate({"model": model, "data": data, "validation": settings})


def test_the_numbers_are_those_of_a_training() -> None:
    for name in ("SAMPLES", "LONGEST", "UNKNOWN"):
        assert getattr(batches, name) == getattr(validation_prompts, name)


def test_without_validation_rows_nothing_is_read_or_answered() -> None:
    assert validation_tokens(config(0), NONE, 100, 800) == 0.0 and not writes_answers(config(0))
    assert writes_answers(config(0, prompts=("Hello",))) and writes_answers(config(60))
    assert not writes_answers(config(60, prompts=()))


def test_rows_are_read_before_after_and_as_often_as_is_asked_for() -> None:
    assert validation_tokens(config(prompts=()), ROWS, 100, 800) >= 2 * 60 * 100
    often = validation_tokens(config(prompts=(), steps=5), ROWS, 100, 800)
    assert often == 21 * 60 * 100
    assert validation_tokens(config(steps=5), ROWS, 100, 800) - often == 16 * 12 * 2 * (1.5 * 50 + 1)


def test_a_classifier_writes_no_answers_and_reads_its_rows_twice_in_each_pass() -> None:
    quiet = validation_tokens(config(prompts=(), steps=5), ROWS, 100, 800)
    assert validation_tokens(config(steps=5), ROWS, 100, 800, TASKS[CLASSIFIER]) == 2 * quiet


WITH_BFLOAT16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="weights are packed in bfloat16 only where it is fast"
)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=WITH_BFLOAT16)])
def test_answers_take_the_bytes_that_decoding_lays_out(dtype: torch.dtype) -> None:
    settings = LlamaConfig(
        vocab_size=600, hidden_size=256, intermediate_size=300, num_hidden_layers=2, num_attention_heads=4,
        tie_word_embeddings=True, max_position_embeddings=64,
    )  # fmt: skip
    module = LlamaForCausalLM(settings).to(dtype)
    shape = shape_of_config(settings.to_dict(), "small", "config.json")
    device, amount = replace(this_processor(), memory=10**10), AtOnce(64, 64, 64)
    name = str(dtype).removeprefix("torch.")
    quiet, answering = (
        forecast(config(0, model={"name": "m", "dtype": name}, prompts=prompts), shape, device, amount)
        for prompts in ((), ("Hello",))
    )
    packed = sum(weight.nbytes for weight in prepacked._weights(module))
    assert answering.memory["answers"] == packed and quiet.memory["answers"] == 0
    assert answering.peak - quiet.peak == packed


def test_what_is_read_beside_the_steps_takes_its_time_once() -> None:
    step, probe = Step(1e9, 100.0), Probe(1.0, 0.01, "here", "now", spread=0.0)
    assert duration(step, 10, probe, validation=Step(1e9, 50.0)).total.likely == pytest.approx(10 * 2.0 + 0.5)
