"""What a plan says of memory, of what fits and of what to change: laws of the arithmetic, and its three methods."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kit.planning_models import shape_of
from rankwise.config.adapters import AdaLoraConfig, FullConfig, LoraConfig
from rankwise.config.experiment import Planned
from rankwise.config.forgetting import BLOCKS
from rankwise.config.models import ModelConfig
from rankwise.config.training import TrainingConfig
from rankwise.planning.batches import AtOnce, packed_at_once
from rankwise.planning.devices import Device, find_device, this_machine
from rankwise.planning.forecast import COMPILER, forecast, weights_bytes
from rankwise.planning.operations import Load
from rankwise.planning.plan import SLOWER_WHEN_SMALL, planned
from rankwise.planning.time import COMPILED_AFTER, MOST_SHARE, SPREAD, Probe

STARTER = shape_of("smollm2-135m")
SEVEN = shape_of("llama-2-7b")
TRAINING, AMOUNT = TrainingConfig(), AtOnce(2048, 700, 512)
CARD = find_device("rtx-4090")
HERE = replace(this_machine(), memory=int(20e9))


def of(spec, shape=STARTER, training=TRAINING, device=HERE, dtype="bfloat16", amount=AMOUNT):
    return forecast(config_of(spec, training, dtype), shape, device, amount)


def config_of(spec, training=TRAINING, dtype="bfloat16"):
    model = ModelConfig(name="m", dtype=dtype)
    return Planned(model=model).model_copy(update={"training": training, "adapter": spec})


def test_a_wide_model_is_planned_at_a_larger_share_of_a_processors_rate():
    device = replace(HERE, flags=frozenset({"avx512_bf16"}), bfloat16=4e11, float32=2e11)
    speeds = (planned(config_of(LoraConfig()), shape, device, None, None).speed for shape in (STARTER, SEVEN))
    narrow, wide = (speed.efficiency.share.likely for speed in speeds)
    assert wide == pytest.approx(MOST_SHARE * narrow)


def test_rows_of_new_tokens_are_computed_by_the_model_itself():
    assert of(LoraConfig()).form == "fast"
    assert of(LoraConfig(), STARTER.with_new_tokens(3)).form == "plain"


def test_each_part_is_what_its_formula_says():
    made = of(AdaLoraConfig(budget="8"))
    count = made.parameters.trainable
    memory = made.memory
    assert memory["weights"] == 2 * STARTER.parameters
    assert memory["adapter"] == memory["gradients"] == 4 * count
    assert memory["optimizer"] == memory["averages"] == 8 * count
    assert memory.peak == round(sum(part.bytes for part in memory.parts))
    whole = of(FullConfig())
    assert whole.dtype == "float32" and whole.memory["adapter"] == 0
    assert whole.memory["weights"] + whole.memory["gradients"] + whole.memory["optimizer"] == 16 * STARTER.parameters


@pytest.mark.parametrize("spec", [LoraConfig(), AdaLoraConfig(), FullConfig()])
def test_memory_grows_with_what_is_computed_and_falls_with_what_is_computed_twice(spec):
    sizes = [of(spec, amount=AtOnce(tokens, tokens // 3, 256)).peak for tokens in (256, 512, 1024, 2048, 4096)]
    assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)
    twice = [of(spec, training=TrainingConfig(activation_checkpointing=blocks)).peak for blocks in range(31)]
    assert twice[:30] == sorted(twice[:30], reverse=True) and twice[0] > twice[10] > twice[28]
    assert twice[29] <= twice[30] < twice[28], "the last block alone is as good as one that is computed again"


def test_more_rank_holds_more_and_layers_above_hold_less():
    assert of(LoraConfig(rank=64)).peak > of(LoraConfig(rank=8)).peak
    assert of(LoraConfig(layers=(28, 29))).memory["activations"] < 0.1 * of(LoraConfig()).memory["activations"]


def planned_for(backend: str, steps: int | None, method: str = "lora", seconds: float = 1.0):
    training = {"backend": backend} | ({} if steps is None else {"steps": steps})
    settings = {"model": "smollm2-135m", "training": training, "adapter": {"method": method}}
    measured = Probe(seconds, 1e-9, "here", "now")
    return planned(Planned.model_validate(settings), STARTER, HERE, None, measured)


def test_torchs_compiler_is_a_part_where_training_takes_it_or_may():
    """By the rule of training/backend.py: a training that takes COMPILED_AFTER seconds compiles by itself."""
    short, longer = int(COMPILED_AFTER / SLOWER_WHEN_SMALL / (1 + SPREAD)) - 1, int(COMPILED_AFTER) + 1
    without = planned_for("fused", longer).forecast
    for backend, steps, expected in (
        ("auto", short, 0), ("auto", longer, COMPILER), ("auto", None, 0), ("compiled", short, COMPILER),
        ("fused", longer, 0), ("eager", longer, 0),
    ):  # fmt: skip
        made = planned_for(backend, steps)
        assert made.forecast.memory["compiler"] == expected, (backend, steps)
        if backend != "eager":
            assert made.forecast.peak - without.peak == expected
    assert planned_for("auto", longer, "full").forecast.memory["compiler"] == 0, "there are no kernels for it"
    assert planned_for("compiled", 3).on(CARD).memory["compiler"] == 0
    assert planned_for("compiled", 3).methods["adalora"].memory["compiler"] == COMPILER


def test_a_small_step_that_unpacks_weights_says_nothing_of_products_in_int8(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "ALL")
    device = replace(HERE, flags=frozenset({"avx512_vnni"}))
    for quantize, storage_expects in (("none", COMPILER), ("int8", 0)):
        settings = {"model": {"name": "smollm2-135m", "quantize": quantize}, "training": {"steps": 100}}
        measured = Probe(0.9 * COMPILED_AFTER / 100, 1e-9, "here", "now")
        made = planned(Planned.model_validate(settings), STARTER, device, None, measured).forecast
        assert made.int8 == (quantize == "int8") and made.memory["compiler"] == storage_expects


def test_number_formats_of_weights():
    sizes = {dtype: weights_bytes(SEVEN, dtype) for dtype in ("float32", "bfloat16", "int8", "nf4")}
    assert sizes["float32"] == 2 * sizes["bfloat16"] == 4 * 6_738_415_616
    assert sizes["int8"] == 7_006_265_344 and sizes["nf4"] == 3_865_592_704, "as loaded (test_stored_weights.py)"


def test_what_is_said_to_fit_at_once_fits_and_a_little_more_does_not():
    made = of(LoraConfig(), SEVEN, device=CARD)
    for recomputed in (0, 16, 32):
        tokens = made.most_at_once(CARD.usable, recomputed)

        def peak(many):
            return made.with_tokens(many, recomputed).peak  # noqa: B023

        assert tokens > 0 and peak(tokens) <= CARD.usable < peak(tokens + 128)


def test_twice_the_tokens_have_twice_the_logits():
    made = of(FullConfig())
    assert made.with_tokens(2 * AMOUNT.tokens, 0).memory["logits"] == 2 * made.memory["logits"]


def test_as_few_blocks_are_computed_twice_as_make_it_fit():
    made = of(LoraConfig(), SEVEN, device=CARD)
    twice = made.least_recomputed(CARD.usable)
    assert twice is not None and made.peak > CARD.usable
    assert replace(made, recomputed=twice).peak <= CARD.usable < replace(made, recomputed=twice - 1).peak
    assert made.fit(CARD).recomputed == twice
    assert made.least_recomputed(10**9) is None


@pytest.mark.parametrize("spec", [LoraConfig(), AdaLoraConfig(), FullConfig()])
@pytest.mark.parametrize("room", [1.5e9, 2e9, 3e9, 4.5e9, 6e9])
def test_every_remedy_is_forecast_to_fit(spec, room):
    for remedy in planned(config_of(spec, dtype="float32"), STARTER, HERE, None, None).remedies_for(int(room)):
        assert remedy.peak <= room and remedy.price and remedy.changes


def test_a_processor_with_too_little_memory_can_leave_weights_in_their_file():
    """The same result, before any rounding of weights; on a card there is no such setting."""
    settings = {"model": {"name": "any", "dtype": "float32"}, "adapter": {"method": "lora"}, "training": {"steps": 10}}
    room, given = 1_600_000_000, Planned.model_validate(settings)
    processor = Device("here", "processor", room, 0, None, 1e11, "a test", "float32")
    offered = {remedy.changes[0]: remedy for remedy in planned(given, STARTER, processor, None, None).remedies}
    assert offered["model.memory=1.6GB"].peak <= room
    assert "model.dtype=bfloat16" not in offered, "it is emulated there"
    card = planned(given, STARTER, replace(processor, kind="consumer", memory=2 * room), None, None)
    assert card.remedies and not any("model.memory" in change for one in card.remedies for change in one.changes)


def test_another_number_format_has_a_speed_of_its_own():
    settings = {"model": {"name": "any", "dtype": "float32"}, "adapter": {"method": "lora"}, "training": {"steps": 10}}
    given = Planned.model_validate(settings)
    slow = Device("here", "processor", 2_500_000_000, 0, 0.2e11, 1e11, "a test", "float32")
    price = {
        device.bfloat16: next(
            remedy.price for remedy in planned(given, STARTER, device, None, None).remedies
            if remedy.changes == ("model.dtype=bfloat16",)
        ) for device in (slow, replace(slow, bfloat16=4e11))
    }  # fmt: skip
    assert "times as long" in price[0.2e11] and "times as long" not in price[4e11]


def test_a_step_that_is_smaller_than_a_micro_batch_is_what_is_held():
    assert packed_at_once(None, TRAINING, 1024) == AtOnce(2048, 2048, 1024)
    assert packed_at_once(None, TrainingConfig(batch_size=1), 300) == AtOnce(300, 300, 300)


def test_a_block_has_the_ranks_of_all_its_adapters():
    assert of(LoraConfig(rank=16)).ranks == dict.fromkeys(range(30), 7 * 16.0)
    assert of(LoraConfig(rank=3, targets=("q_proj",), layers=(4, 9))).ranks == {4: 3.0, 9: 3.0}
    assert of(LoraConfig(rank=3, targets=("q_proj",), layers=(4, 9))).lowest == 4
    assert of(FullConfig()).ranks == {} and of(FullConfig()).lowest == 0


def test_an_anchor_adds_its_text_to_what_is_computed():
    """Its block joins the last micro-batch where there is room, and its passes are part of every step."""
    anchored = TrainingConfig(batch_size=4, anchor={"tokens": 128})
    assert packed_at_once(None, anchored, 256).tokens == 4 * 256 + 128
    full = TrainingConfig(batch_size=16, anchor={"tokens": 128})
    assert packed_at_once(None, full, 256).tokens == 2048 == packed_at_once(None, TrainingConfig(), 256).tokens
    made = of(LoraConfig())
    whole = made.operations(Load((128,), 128.0))
    first, later = (made.anchor_operations(anchored.anchor, steps) for steps in (BLOCKS, 100 * BLOCKS))
    assert first == whole.total + whole.head + whole.forward and first - later == pytest.approx(0.99 * whole.forward)
    assert made.anchor_operations(None, 10) == 0.0
    settings = [{"model": "smollm2-135m", "training": {"steps": 20, "anchor": anchor}} for anchor in (None, {})]
    steps = [planned(Planned.model_validate(one), STARTER, HERE, None, None).step for one in settings]
    assert steps[1].operations - steps[0].operations == pytest.approx(first)
