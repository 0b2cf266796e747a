"""Rows of different adapters in one batch, which begin and end at different times: each is what its adapter writes
alone."""

from __future__ import annotations

import contextlib
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rankwise
from conftest import tiny_model
from rankwise.adapters.by_row import AdaptersByRow
from rankwise.config.adapters import LoraConfig
from rankwise.errors import EvaluationError
from rankwise.inference.batch import GenerationRow, GrowingBatch
from rankwise.inference.prefixes import SHORTEST, Prefixes, common
from rankwise.inference.sampling import GREEDY, Sampler, Sampling

NAMES = ("low", "few", "dora", "head", None)


@pytest.fixture(scope="module", params=["llama", "llama by compiled code", "gpt2"])
def adapted(request):
    """A tiny model with adapters that change what it writes: of other ranks, over other layers, DoRA, and one with an
    output head of its own. Compiled code knows neither of the last two."""
    kind, _, compiled = request.param.partition(" ")
    model = tiny_model(kind).eval()
    few = ("q_proj", "down_proj") if kind == "llama" else ("c_proj",)
    adapters = rankwise.inject(model, LoraConfig(rank=4), name="low")
    rankwise.add_adapter(adapters, LoraConfig(rank=2, targets=few), name="few", seed=1)
    rankwise.add_adapter(adapters, LoraConfig(rank=3, dora=not compiled), name="dora", seed=2)
    rankwise.add_adapter(adapters, LoraConfig(rank=2), name="head", seed=3, heads=() if compiled else ("lm_head",))
    with torch.no_grad():
        for name in NAMES[:-1]:
            for parameter in adapters.parameters(name):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
    return model, adapters


def alone(model, adapters, row, count):
    """By transformers, with one adapter active."""
    if row.adapter:
        adapters.activate(row.adapter)
    with contextlib.nullcontext() if row.adapter else adapters.base():
        made = model.generate(torch.tensor([row.prompt]), do_sample=False, max_new_tokens=count, eos_token_id=None)
    return made[0, len(row.prompt) :].tolist()


def written_together(batch, jobs, chance, most=6):
    """Write each job's row to its length, joining and leaving at random moments."""
    waiting, running = list(jobs), []
    while waiting or running:
        while waiting and len(running) < most and chance.random() < 0.7:
            running.append(waiting.pop())
            batch.join(running[-1][0])
        ended = [job for job in running if len(job[0].ids) >= job[1]]
        batch.leave([row for row, _ in ended])
        running = [job for job in running if job not in ended]
        if running:
            batch.step()


def jobs_of(chance, count, names, spec=GREEDY):
    def row(number):
        prompt = [chance.randrange(3, 96) for _ in range(chance.randrange(1, 20))]
        return GenerationRow(prompt, chance.choice(names), Sampler.seeded(spec, number))

    return [(row(number), chance.randrange(1, 12)) for number in range(count)]


def test_each_row_is_what_its_adapter_writes_alone(adapted):
    model, adapters = adapted
    jobs = jobs_of(random.Random(0), 25, NAMES)
    written_together(GrowingBatch(model, AdaptersByRow(adapters).of), jobs, random.Random(1))
    answers = {name: [] for name in NAMES}
    for row, count in jobs:
        answers[row.adapter].append(row.ids[:count])
        assert row.ids[:count] == alone(model, adapters, row, count), row
    same = GenerationRow([5, 6, 7], None, Sampler.seeded(GREEDY, 0))
    apart = [alone(model, adapters, GenerationRow(same.prompt, name, same.sampler), 8) for name in NAMES]
    assert len({tuple(one) for one in apart}) == len(NAMES), "else another adapter's answer would not be seen"


def conversations(chance, count, names):
    """Rows whose prompts begin as earlier ones, with their answers or without, or as none."""
    prompts, jobs = [[chance.randrange(3, 96) for _ in range(30)]], []
    for number in range(count):
        begin = chance.choice(prompts)[: chance.randrange(10, 60)]
        prompts.append([*begin, *(chance.randrange(3, 96) for _ in range(chance.randrange(1, 20)))])
        jobs.append(
            (GenerationRow(prompts[-1], chance.choice(names), Sampler.seeded(GREEDY, number)), chance.randrange(1, 12))
        )
    return jobs


@pytest.mark.parametrize("most", [1, 7])
def test_a_prompt_that_is_read_in_parts_is_the_same_prompt(adapted, most):
    model, adapters = adapted
    batch, jobs = GrowingBatch(model, AdaptersByRow(adapters).of), jobs_of(random.Random(8), 8, NAMES)
    for row, _ in jobs:
        parts = 0
        while batch.read(row, most) is None:
            parts += 1
            if batch.rows:
                batch.step()  # the others go on
        assert parts == (len(row.prompt) - 1) // most
    while min(len(row.ids) - count for row, count in jobs) < 0:
        batch.step()
    for row, count in jobs:
        assert row.ids[:count] == alone(model, adapters, row, count), row


def test_what_a_prompt_shares_with_an_earlier_one_is_not_read_again_and_changes_no_answer(adapted):
    model, adapters = adapted
    prefixes = Prefixes()
    jobs = conversations(random.Random(3), 35, NAMES)
    written_together(GrowingBatch(model, AdaptersByRow(adapters).of, prefixes), jobs, random.Random(1))
    for row, count in jobs:
        assert row.ids[:count] == alone(model, adapters, row, count), (row.adapter, row.reused)
    assert sum(row.reused >= SHORTEST for row, _ in jobs) > 10
    assert all(row.reused < len(row.prompt) for row, _ in jobs)
    goes_on = [
        GenerationRow([*row.prompt, *row.ids[:count], 7, 8], row.adapter, Sampler.seeded(GREEDY, 0))
        for row, count in jobs
    ]
    row = max(goes_on, key=lambda one: len(one.prompt))
    written_together(GrowingBatch(model, AdaptersByRow(adapters).of, prefixes), [(row, 6)], random.Random(1))
    assert row.reused >= len(row.prompt) - 3, "an answer is not read again either, but for its last token"
    assert row.ids[:6] == alone(model, adapters, row, 6)


def test_another_adapter_and_one_that_was_forgotten_read_everything(adapted):
    model, adapters = adapted
    prefixes, by_row = Prefixes(), AdaptersByRow(adapters).of
    prompt = list(range(3, 43))

    def reused(name):
        row = GenerationRow(prompt, name, Sampler.seeded(GREEDY, 0))
        written_together(GrowingBatch(model, by_row, prefixes), [(row, 3)], random.Random(0))
        assert row.ids[:3] == alone(model, adapters, row, 3)
        return row.reused

    assert [reused(name) for name in NAMES] == [0] * len(NAMES)
    assert [reused(name) for name in NAMES] == [len(prompt) - 1] * len(NAMES)
    prefixes.forget(NAMES[0])
    assert [reused(name) for name in NAMES] == [0] + [len(prompt) - 1] * (len(NAMES) - 1)


@given(st.lists(st.integers(0, 1), max_size=30), st.lists(st.integers(0, 1), max_size=30))
def test_the_beginning_of_two_lists_that_is_the_same(first, second):
    same = common(tuple(first), tuple(second))
    assert first[:same] == second[:same] and (first[same : same + 1] != second[same : same + 1] or first == second)


def test_what_stays_is_bounded_and_the_least_recently_used_goes():
    layers = [(torch.zeros(2, 100, 8), torch.zeros(2, 100, 8))]
    of = lambda first: [first, *range(99)]  # noqa: E731
    prefixes = Prefixes(3 * 2 * 2 * 100 * 8 * 4)
    for first in (1, 2, 3):
        prefixes.add(of(first), None, layers)
    assert prefixes.beginning_of([*of(1), 5], None)[0] == 100
    prefixes.add(of(4), None, layers)
    assert [prefixes.beginning_of([*of(one), 5], None)[0] for one in (1, 2, 3, 4)] == [100, 0, 100, 100]
    prefixes.add([9] * 20, None, [(a[:, 30:50], b[:, 30:50]) for a, b in layers])
    own = [part.untyped_storage().nbytes() for one in prefixes._read for pair in one.layers for part in pair]
    assert sum(own) == prefixes.bytes, "a view would keep all of a batch in memory"
    before = prefixes.bytes
    prefixes.add([*of(4)[:50]], None, [(a[:, :50], b[:, :50]) for a, b in layers])
    assert prefixes.bytes == before, "it is a beginning of what is there"
    one = Prefixes()
    for length in (30, 60):
        one.add(of(1)[:length], None, [(a[:, :length], b[:, :length]) for a, b in layers])
    assert [len(read.ids) for read in one._read] == [60], "the longer one is in the place of the shorter"
    nothing = Prefixes(0)
    nothing.add(of(1), None, layers)
    assert nothing.bytes == 0 and nothing.beginning_of([*of(1), 5], None) == (0, ())


def test_what_gave_no_numbers_is_not_used_again(adapted):
    model, adapters = adapted
    prefixes = Prefixes()
    batch = GrowingBatch(model, AdaptersByRow(adapters).of, prefixes)
    row = GenerationRow(list(range(3, 43)), None, Sampler.seeded(GREEDY, 0))
    batch.join(row)
    batch.step()
    before, real = prefixes.bytes, model.lm_head.weight.detach().clone()
    model.lm_head.weight.data.fill_(float("nan"))
    try:
        assert batch.step() == [None]
        batch.leave([row])
        with pytest.raises(EvaluationError):
            GrowingBatch(model, AdaptersByRow(adapters).of, prefixes).join(
                GenerationRow([9] * 40, None, Sampler.seeded(GREEDY, 0))
            )
    finally:
        model.lm_head.weight.data.copy_(real)
    assert prefixes.bytes == before


def test_in_16_bits_a_mixed_batch_rounds_as_each_adapter_alone():
    """The change of a row is added before its sum is rounded, in company too."""
    model = tiny_model("llama").eval().to(torch.bfloat16)
    adapters = rankwise.inject(model, LoraConfig(rank=4), name="one")
    rankwise.add_adapter(adapters, LoraConfig(rank=4), name="other", seed=1)
    with torch.no_grad():
        for name in ("one", "other"):
            for parameter in adapters.parameters(name):
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    x = torch.randn(3, 2, 32, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    layer = next(iter(adapters.layers.values()))
    with torch.no_grad(), AdaptersByRow(adapters).of(["one", None, "other"]):
        together = layer(x)
    for number, name in ((0, "one"), (2, "other")):
        adapters.activate(name)
        with torch.no_grad():
            assert torch.equal(together[number], layer(x)[number])


def test_what_is_drawn_depends_on_the_seed_and_not_on_the_company(adapted):
    model, adapters = adapted
    spec = Sampling(temperature=1.5, top_p=0.9, presence=0.5, frequency=0.2, bias={5: 2.0})
    by_row = AdaptersByRow(adapters).of
    jobs, again = (jobs_of(random.Random(4), 12, NAMES, spec) for _ in range(2))
    written_together(GrowingBatch(model, by_row), jobs, random.Random(5))
    for (row, count), (other, _) in zip(jobs, again, strict=True):
        written_together(GrowingBatch(model, by_row), [(other, count)], random.Random(6), most=1)
        assert row.ids[:count] == other.ids[:count]
    greedy = jobs_of(random.Random(4), 12, NAMES)
    written_together(GrowingBatch(model, by_row), greedy, random.Random(5))
    assert any(row.ids[:count] != drawn.ids[:count] for (row, count), (drawn, _) in zip(greedy, jobs, strict=True))


def test_top_p_leaves_the_likeliest_tokens_and_bias_and_penalties_move_them():
    logits = torch.tensor([4.0, 3.0, 0.0, -1.0])
    drawn = {Sampler.seeded(Sampling(1.0, top_p=0.9), seed).choose(logits).token for seed in range(200)}
    assert drawn == {0, 1}  # 0.72 and 0.98 of the probability together
    assert Sampler.seeded(Sampling(bias={3: 9.0}), 0).choose(logits).token == 3
    sampler = Sampler.seeded(Sampling(presence=0.6, frequency=0.6), 0)
    assert [sampler.choose(logits).token for _ in range(4)] == [0, 1, 0, 0]  # 2.8 < 3; then 2.8 > 1.8, and 2.2 > 1.8
    listed = Sampler.seeded(Sampling(bias={3: 9.0}, likely=2, listed=True), 0).choose(logits)
    assert listed.logprob == pytest.approx(float(logits.log_softmax(-1)[3]))
    assert [token for token, _ in listed.likely] == [0, 1]


@pytest.mark.parametrize("spec", [{"temperature": 1e-38}, {"temperature": 5e-324}, {"top_p": 1e-300}], ids=str)
def test_numbers_too_small_for_float32_draw_the_most_likely_token(spec):
    """No division by them overflows, as that would end all answers of the batch."""
    sampler = Sampler.seeded(Sampling(**{"temperature": 1.0} | spec), 0)
    assert sampler.choose(torch.tensor([4.0, 9.0, -60.0])).token == 1


def test_damaged_weights_are_no_answer(adapted):
    model, adapters = adapted
    weight = model.get_output_embeddings().weight
    before = weight[3, 0].item()
    with torch.no_grad():
        weight[3, 0] = float("nan")
    try:
        with pytest.raises(EvaluationError, match="damaged"):
            GrowingBatch(model, AdaptersByRow(adapters).of).join(GenerationRow([1, 2], None, Sampler.seeded(GREEDY, 0)))
    finally:
        with torch.no_grad():
            weight[3, 0] = before


def test_a_row_without_numbers_takes_no_other_with_it(adapted):
    """An adapter that overflows, in the middle of answers of others."""
    model, adapters = adapted
    others = jobs_of(random.Random(5), 3, ("low", "dora", None))
    broken = GenerationRow([5, 6, 7], "few", Sampler.seeded(GREEDY, 0))
    batch = GrowingBatch(model, AdaptersByRow(adapters).of)
    for row in (*(row for row, _ in others), broken):
        batch.join(row)
    weights = adapters.parameters("few")
    before = [weight.clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight.fill_(3e37)
    try:
        batch._by_row = AdaptersByRow(adapters).of
        chosen = batch.step()
        assert chosen[-1] is None and None not in chosen[:-1]
        batch.leave([broken])
        batch.step()
    finally:
        with torch.no_grad():
            for weight, values in zip(weights, before, strict=True):
                weight.copy_(values)
    for row, _ in others:
        assert row.ids == alone(model, adapters, row, 3)


@pytest.mark.parametrize("spec", [GREEDY, Sampling(temperature=1.0)], ids=["greedy", "drawn"])
def test_a_broken_row_is_told_apart_however_tokens_are_chosen(adapted, spec):
    model, adapters = adapted
    batch = GrowingBatch(model, AdaptersByRow(adapters).of)
    rows = [GenerationRow([1, 2], None, Sampler.seeded(spec, number)) for number in range(2)]
    logits = torch.zeros(2, 96)
    logits[0, 3] = float("nan")
    first, second = batch._choose(logits, rows)
    assert first is None and second is not None and rows[0].ids == [] and len(rows[1].ids) == 1
