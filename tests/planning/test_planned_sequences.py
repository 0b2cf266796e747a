"""An encoder with a decoder is planned from the model itself: what its blocks keep and what they compute."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoModelForSeq2SeqLM

from rankwise.config.adapters import FullConfig, LoraConfig
from rankwise.config.experiment import Planned
from rankwise.config.training import TrainingConfig
from rankwise.forward.activation_memory import blocks_in_order
from rankwise.forward.fake_pass import Recorder, following
from rankwise.forward.model_shape import shape_of_config
from rankwise.methods.full import FullFineTuning
from rankwise.methods.inject import inject
from rankwise.objectives.registry import objective_named
from rankwise.objectives.sequence_to_sequence import batch_of, row_of
from rankwise.planning.batches import AtOnce, micro_batches, padded_load, sides_at_once
from rankwise.planning.devices import Device
from rankwise.planning.estimate import Estimate
from rankwise.planning.forecast import Forecast, forecast
from rankwise.planning.operations import Load, Operations
from rankwise.planning.parameters import parameters_of
from rankwise.planning.rows import Drawn, PlannedRows
from rankwise.planning.shape import shape_from_json, shape_to_json

CONFIGS = {
    "t5": {"vocab_size": 64, "d_model": 48, "d_kv": 12, "d_ff": 80, "num_layers": 3, "num_decoder_layers": 4,
           "num_heads": 4, "relative_attention_num_buckets": 8, "decoder_start_token_id": 0},
    "bart": {"vocab_size": 64, "d_model": 48, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 80, "decoder_ffn_dim": 64,
             "max_position_embeddings": 256},
}  # fmt: skip
ROWS, READ, WRITTEN, RANK = 3, 72, 40, 4
SHARE = WRITTEN / (READ + WRITTEN)
TOKENS = ROWS * (READ + WRITTEN)
METHODS = [("lora", torch.float32), ("lora", torch.bfloat16), ("full", torch.float32)]


def config_of(name: str):
    return CONFIG_MAPPING[name](**CONFIGS[name])


@cache
def shape(name: str):
    return shape_of_config(config_of(name).to_dict(), name, "config.json")


def built(name: str, method: str, dtype: torch.dtype):
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config_of(name), dtype=dtype).eval()
    if method == "full":
        FullFineTuning(model, dict)
    else:
        inject(model, LoraConfig(rank=RANK, dropout=0.0))
    return model


def rows():
    """The second and the third are padded on one side."""
    sides = [(READ, WRITTEN), (READ - 9, WRITTEN), (READ, WRITTEN - 9)]
    return [row_of([1] * given, [2] * output) for given, output in sides]


def planned_bytes(name: str, method: str, dtype: torch.dtype, recomputed: int = 0) -> float:
    spec = FullConfig() if method == "full" else LoraConfig(rank=RANK)
    amount = AtOnce(TOKENS, TOKENS, READ + WRITTEN, output_share=SHARE)
    return replace(forecast_of(name, spec, str(dtype).removeprefix("torch."), amount), recomputed=recomputed).saved


def forecast_of(name: str, spec: LoraConfig | FullConfig, dtype: str, amount: AtOnce) -> Forecast:
    config = Planned.model_validate({"model": {"name": "m", "dtype": dtype}}).model_copy(update={"adapter": spec})
    device = Device("here", "processor", 10**10, 0, None, 1e11, "a test")
    return forecast(config, shape(name), device, amount)


def blocks_keep(model, batch) -> int:
    """What all blocks save in a pass over real tensors."""
    recorder, paths = Recorder(model), {id(part): path for path, part in model.named_modules()}
    blocks = [paths[id(block)] for block in blocks_in_order(model)]
    with (
        following(model, blocks, recorder.enter),
        torch.autograd.graph.saved_tensors_hooks(recorder.save, lambda value: value),
    ):
        objective_named("sequence-to-sequence").loss(model, batch)
    return sum(recorder.saved[path] for path in blocks)


@pytest.mark.parametrize(("method", "dtype"), METHODS, ids=["float32", "bfloat16", "full"])
@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_keep_what_autograd_saves_of_padded_rows(name, method, dtype):
    model = built(name, method, dtype)
    assert planned_bytes(name, method, dtype) == pytest.approx(blocks_keep(model, batch_of(rows())), rel=0.04)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_layer_is_counted_on_the_side_that_it_maps(name):
    """By torch's own count of the operations of a forward pass, whose head reads the decoder's tokens."""
    model = AutoModelForSeq2SeqLM.from_config(config_of(name), attn_implementation="eager").eval()
    batch = batch_of([row_of([1] * READ, [2] * WRITTEN)] * ROWS)
    with FlopCounterMode(display=False) as counter:
        objective_named("sequence-to-sequence").loss(model, batch)
    load = Load((READ + WRITTEN,) * ROWS, float(ROWS * WRITTEN), (WRITTEN,) * ROWS)
    planned, decoder = Operations(shape(name), load, {}, FullConfig()), shape(name).stacks[-1]
    unneeded = 4.0 * decoder.queries * decoder.count * ROWS * WRITTEN**2 / 2  # of scores, which the plan leaves out
    assert planned.forward + unneeded == counter.get_total_flops()
    assert planned.layers_back == 2 * planned.layers and planned.head_back == 2 * planned.head


def test_layers_below_the_lowest_that_learns_have_no_backward_pass():
    load, ranks = Load((READ + WRITTEN,), float(WRITTEN), (WRITTEN,)), {"decoder.block.3.layer.2.DenseReluDense.wo": 4}
    above = Operations(shape("t5"), load, ranks)
    everywhere = Operations(shape("t5"), load, {**ranks, "encoder.block.0.layer.0.SelfAttention.q": 4})
    assert above.layers_back == 0 < everywhere.layers_back
    assert 0 < above.adapters < everywhere.adapters


@pytest.mark.parametrize("name", CONFIGS)
def test_recomputed_blocks_keep_their_input_from_the_encoders_first_on(name):
    blocks = sum(stack.count for stack in shape(name).stacks)
    sizes = [planned_bytes(name, "lora", torch.float32, count) for count in range(blocks + 1)]
    assert all(later < earlier for earlier, later in pairwise(sizes[:blocks]))
    inputs = 4 * 48 * ROWS * sum(
        stack.count * length for stack, length in zip(shape(name).stacks, (READ, WRITTEN), strict=True)
    )  # fmt: skip
    assert inputs < sizes[-1] < sizes[0] / 2


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shape_is_the_same_after_it_was_written(name):
    stored = json.loads(json.dumps(shape_to_json(shape(name))))
    again = shape_from_json(stored, name)
    assert again.layers == shape(name).layers and again.block_count == shape(name).block_count
    assert again.is_measured and again.task.planned
    assert [stack.reading.keys() for stack in again.stacks] == [stack.reading.keys() for stack in shape(name).stacks]


def rows_planned() -> PlannedRows:
    """Ten short rows, one of which has a long output, and one row with a long input."""
    drawn = sorted([(20, 8)] * 9 + [(90, 60), (200, 10)])
    lengths, learned = (Estimate.exactly(sum(values)) for values in zip(*drawn, strict=True))
    rows = tuple(Drawn((length - output, output), output, length) for length, output in drawn)
    return PlannedRows(Estimate.exactly(len(drawn)), lengths, learned, 0.0, 200, 190, rows, exact=True)


def test_micro_batches_are_those_of_a_training():
    training, rows = TrainingConfig(batch_size=11, max_batch_tokens=220), rows_planned()
    real = [row_of([1] * given, [2] * output) for given, output in (one.texts for one in rows.drawn)]
    theirs = objective_named("sequence-to-sequence").loss.batches(real, training.max_batch_tokens)
    ours = list(micro_batches(rows.drawn, rows.count, training))
    assert [(one.tokens, one.rows * one.widths[1], one.learned) for one in ours] == [
        (batch.size, batch.decoder_tokens, batch.count) for batch in theirs
    ]
    load = padded_load(rows, training)
    assert (load.tokens, load.output_tokens) == (sum(b.size for b in theirs), sum(b.decoder_tokens for b in theirs))
    assert load.supervised == sum(one.supervised for one in rows.drawn)


def test_the_largest_micro_batch_is_looked_for_on_both_sides():
    amounts = sides_at_once(rows_planned(), TrainingConfig(batch_size=11, max_batch_tokens=220), 512)
    assert max(round(one.tokens * one.output_share) for one in amounts) >= 60
    assert max(one.longest for one in amounts) == 200
    (alone,) = sides_at_once(None, TrainingConfig(batch_size=2, max_batch_tokens=4096), 512)
    assert (alone.tokens, alone.learned, alone.longest) == (1024, 512, 512)


def test_a_method_that_trains_the_whole_model_is_planned_too():
    assert parameters_of(shape("t5"), FullConfig()).trainable == shape("t5").parameters


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loss_holds_four_copies_of_the_logits_in_float32(dtype):
    """As trainings of T5's and BART's shapes were measured to (bench/plan.py --sequences)."""
    (amount,) = sides_at_once(None, TrainingConfig(batch_size=2, max_batch_tokens=4096), 512)
    planned = forecast_of("t5", LoraConfig(rank=RANK), dtype, amount)
    assert planned.memory["logits"] == 4 * 4 * amount.learned * shape("t5").vocabulary
