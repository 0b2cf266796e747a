"""Packing loses, doubles and mixes nothing: each sequence is computed as if it were alone, and trained the same."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import StableLmConfig, StableLmForCausalLM

from conftest import tiny_model
from kit.sampling import draws
from kit.summed_losses import summed
from kit.trainers import train
from rankwise.config.adapters import LoraConfig
from rankwise.config.training import TrainingConfig
from rankwise.forward.reference import SupervisedLogits
from rankwise.methods.inject import inject
from rankwise.methods.lora import TrainableLoRA
from rankwise.rows.encoded.batches import IGNORED, Batches, padded_length, portion
from rankwise.rows.encoded.packing import pack
from rankwise.rows.text.tokenize import Tokens
from rankwise.training.state import TrainState, adamw

CAUSAL = ("llama", "gpt2", "neox", "gptj", "stablelm")


def model_of(architecture):
    if architecture != "stablelm":
        return tiny_model(architecture)
    torch.manual_seed(0)
    config = StableLmConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    return StableLmForCausalLM(config).eval()


def as_arrays(sequence):
    return Tokens(np.array(sequence.ids, dtype=np.uint16), np.array(sequence.loss_mask))


PAIRS = st.lists(st.tuples(st.integers(1, 95), st.booleans()), min_size=1, max_size=40)  # 0 is only in padding
PLAIN = PAIRS.map(lambda pairs: Tokens(tuple(i for i, _ in pairs), tuple(learned for _, learned in pairs)))
DOCUMENTS = st.lists(st.one_of(PLAIN, PLAIN.map(as_arrays)), min_size=1, max_size=14)
LIMITS = st.integers(1, 200)


def random_documents(lengths, seed=0):
    """All learned, so that there are logits everywhere."""
    generator = np.random.default_rng(seed)
    return [Tokens(tuple(generator.integers(1, 96, n).tolist()), (True,) * n) for n in lengths]


def segments(batch):
    """(row, start, end) of each sequence; asserts that what is left of a row is one stretch asked nothing."""
    for index, inputs in enumerate(batch.input_ids.tolist()):
        if batch.position_ids is None:
            starts = [0]
            used = sum(token != 0 for token in inputs)
        else:
            places = batch.position_ids[index].tolist()
            starts = [start for start, place in enumerate(places) if place == 0]
            for start, end in pairwise([*starts, len(inputs)]):
                assert places[start:end] == list(range(end - start)), "positions count on within a sequence"
            used = next((start for start in starts if inputs[start] == 0), len(inputs))
            starts = [start for start in starts if start < used]
        assert all(token == 0 for token in inputs[used:])
        assert all(token != 0 for token in inputs[:used])
        assert (batch.targets[index, used:] == IGNORED).all()
        for start, end in pairwise([*starts, used]):
            yield index, start, end


def recovered(batches):
    return Counter(
        (tuple(batch.input_ids[row, start:end].tolist()), tuple(batch.targets[row, start:end].tolist()))
        for batch in batches
        for row, start, end in segments(batch)
    )


def wanted(sequences):
    return Counter(
        (
            tuple(int(token) for token in sequence.ids[:-1]),
            tuple(
                int(token) if learned else IGNORED
                for token, learned in zip(sequence.ids[1:], sequence.loss_mask[1:], strict=True)
            ),
        )
        for sequence in sequences
        if len(sequence.ids) > 1
    )


@settings(max_examples=draws(150), deadline=None)
@given(sequences=DOCUMENTS, limit=LIMITS)
def test_every_document_is_there_once_with_its_own_targets_and_positions(sequences, limit):
    batches = pack(sequences, limit)
    assert recovered(batches) == wanted(sequences)
    assert sum(batch.tokens for batch in batches) == sum(len(sequence.ids) - 1 for sequence in sequences)
    for batch in batches:
        assert batch.tokens == sum(end - start for _, start, end in segments(batch))


@settings(max_examples=draws(150), deadline=None)
@given(sequences=DOCUMENTS, limit=LIMITS)
def test_no_micro_batch_of_several_documents_computes_more_than_the_limit(sequences, limit):
    batches = pack(sequences, limit)
    widest = max(padded_length(sequence) for sequence in sequences)
    for batch in batches:
        assert len(list(segments(batch))) == 1 or batch.input_ids.numel() <= limit
        assert batch.input_ids.shape[1] % 8 == 0
        assert batch.input_ids.shape[1] <= widest
    widths = [batch.input_ids.shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True), "what is too large for memory fails at once"


@settings(max_examples=draws(60), deadline=None)
@given(sequences=DOCUMENTS, limit=LIMITS)
def test_packing_is_a_function_and_never_takes_more_rows_than_documents_need(sequences, limit):
    first, second = pack(sequences, limit), pack(sequences, limit)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.targets, other.targets)
        assert (one.position_ids is None) == (other.position_ids is None)
        assert one.position_ids is None or torch.equal(one.position_ids, other.position_ids)
    asked = [len(sequence.ids) - 1 for sequence in sequences]
    room = min(max(padded_length(sequence) for sequence in sequences), limit // 8 * 8)
    rows = []
    for batch in first:
        lengths = [(row, end - start) for row, start, end in segments(batch)]
        rows += [[length for there, length in lengths if there == row] for row in range(len(batch.input_ids))]
    small = [sum(row) for row in rows if sum(row) <= room]
    assert all(len(row) == 1 for row in rows if sum(row) > room)
    assert all(a + b > room for place, a in enumerate(small) for b in small[:place]), "no two rows would fit in one"
    assert sum(map(sum, rows)) == sum(asked)


def test_documents_fill_the_rows_that_padding_left_empty():
    sequences = random_documents([n + 1 for n in (32, 20, 12, 16, 9, 7, 32)])
    [batch] = pack(sequences, 1000)
    assert batch.input_ids.shape == (4, 32)
    assert batch.input_ids.numel() == batch.tokens
    [padded] = portion(sequences, 1000)
    assert padded.input_ids.numel() == 7 * 32
    assert len(pack(sequences, 64)) == 2


def test_any_number_of_documents_shares_a_row():
    sequences = random_documents([41] + [2] * 90)
    batches = pack(sequences, 1000)
    assert [tuple(batch.input_ids.shape) for batch in batches] == [(4, 40)]
    assert recovered(batches) == wanted(sequences)


def test_a_document_larger_than_the_limit_is_alone_and_the_others_keep_to_it():
    batches = pack(random_documents([101, 9, 9, 17]), 32)
    assert [tuple(batch.input_ids.shape) for batch in batches] == [(1, 104), (1, 32)]
    assert batches[0].position_ids is None
    assert batches[1].position_ids.tolist() == [[*range(16), *range(8), *range(8)]]


def test_rows_of_one_document_each_are_padded_ones_and_need_no_positions():
    sequences = random_documents([33, 30, 28])
    [packed], [padded] = pack(sequences, 1000), portion(sequences, 1000)
    assert packed.position_ids is None
    assert torch.equal(packed.input_ids, padded.input_ids)
    assert torch.equal(packed.targets, padded.targets)


def test_a_document_of_one_token_asks_nothing_and_takes_no_place():
    [batch] = pack(random_documents([1, 9, 1, 5]), 1000)
    assert recovered([batch]) == wanted(random_documents([1, 9, 1, 5]))
    assert batch.tokens == 12
    assert pack(random_documents([1, 1]), 1000) == []


def alone(model, sequence):
    return model(input_ids=torch.tensor([sequence.ids[:-1]])).logits[0]


def packed_logits(model, batch):
    return model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits


@pytest.mark.parametrize("architecture", CAUSAL)
@settings(max_examples=draws(15), deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=10), seed=st.integers(0, 10**6), limit=LIMITS)
@torch.no_grad()
def test_a_packed_document_has_the_logits_it_has_alone(architecture, lengths, seed, limit):
    model = model_of(architecture)
    sequences = random_documents(lengths, seed)
    expected = {sequence.ids[:-1]: alone(model, sequence) for sequence in sequences if len(sequence.ids) > 1}
    for batch in pack(sequences, limit):
        few, full = SupervisedLogits(model)(batch), torch.zeros(*batch.input_ids.shape, 96)
        full[batch.loss_mask] = few
        for row, start, end in segments(batch):
            there = expected[tuple(batch.input_ids[row, start:end].tolist())]
            assert (full[row, start:end] - there).abs().max() <= 1e-5 * there.abs().max()


@pytest.mark.parametrize("architecture", CAUSAL)
@settings(max_examples=draws(10), deadline=None)
@given(
    lengths=st.lists(st.integers(2, 40), min_size=3, max_size=8), seed=st.integers(0, 10**6), which=st.integers(0, 100)
)
@torch.no_grad()
def test_a_changed_token_reaches_no_other_document(architecture, lengths, seed, which):
    model = model_of(architecture)
    sequences = random_documents(sorted([*lengths, 41], reverse=True), seed)  # in order, so that the layout stays
    which %= len(sequences)
    ids = sequences[which].ids
    others = [*sequences]
    others[which] = Tokens((ids[0] % 95 + 1, *ids[1:]), sequences[which].loss_mask)
    [before], [after] = pack(sequences, 10**6), pack(others, 10**6)
    if before.position_ids is None:
        return
    first, second = packed_logits(model, before), packed_logits(model, after)
    changed = 0
    for row, start, end in segments(before):
        moved = (first[row, start:end] - second[row, start:end]).abs().max()
        if torch.equal(before.input_ids[row, start:end], after.input_ids[row, start:end]):
            assert moved <= 1e-6
        else:
            changed += 1
            assert moved > 1e-4
    assert changed == 1


def trained(arrange, max_batch_tokens):
    """The records of 8 steps of 6 of 20 sequences, across two ends of a pass, and the adapter they made."""
    generator = np.random.default_rng(3)
    sequences = []
    for length in generator.integers(4, 40, 20):
        given = generator.integers(1, length)
        ids = tuple(generator.integers(0, 96, length).tolist())
        sequences.append(Tokens(ids, tuple(place >= given for place in range(length))))
    model = tiny_model("llama")
    adapters = inject(model, LoraConfig(rank=4), seed=1)
    trainable, parameters = TrainableLoRA(adapters), adapters.parameters()
    state = TrainState(trainable, adamw(trainable, TrainingConfig()), lambda step: 1e-2, 8, 1.0, torch.device("cpu"))
    records = []
    batches = Batches(sequences, 6, max_batch_tokens, 7, arrange)
    train(state, batches, loss_of=summed(SupervisedLogits(model)), callback=records.append)
    assert any(batch.position_ids is not None for batch in batches.at(0)) == (arrange is pack)
    return records, parameters, [len(batches.at(step)) for step in range(8)]


@pytest.mark.parametrize("max_batch_tokens", [40, 64, 1000])
def test_packed_training_is_padded_training(max_batch_tokens):
    padded, by_padding, _ = trained(portion, max_batch_tokens)
    packed, by_packing, micro_batches = trained(pack, max_batch_tokens)
    assert max(micro_batches) == 1 if max_batch_tokens == 1000 else min(micro_batches) > 1
    for one, other in zip(padded, packed, strict=True):
        assert abs(one.loss - other.loss) <= 1e-5
        assert one.tokens == other.tokens
        assert one.loss_tokens == other.loss_tokens
        assert abs(one.gradient_norm - other.gradient_norm) <= 1e-4 * one.gradient_norm
    assert padded[-1].loss != padded[0].loss
    assert max((a - b).abs().max() for a, b in zip(by_padding, by_packing, strict=True)) <= 1e-4
