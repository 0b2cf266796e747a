"""The fused backend of image models: what the model's own code computes, with adapters, caches and recomputation."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, RobertaForSequenceClassification

from kit.vision_models import FAMILIES, images, tiny
from rankwise.adapters.set import AdapterSet
from rankwise.adapters.targets import choose
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.forward.activation_memory import saved_bytes
from rankwise.forward.agreement import encoder_agreement
from rankwise.forward.encoders import FusedEncoder, encoder_blocks, has_encoder_kernels, lowest_block_that_learns
from rankwise.methods.inject import add_layers
from rankwise.rows.encoded.batches import Batch

KNOWN = ("vit", "deit", "dinov2", "clip", "siglip")


def adapted(family: str, config: LoraConfig | AdaLoraConfig | None = None) -> tuple[nn.Module, AdapterSet]:
    """A tiny model in float64, whose adapters are away from their start."""
    model, _ = tiny(family)
    adapters = AdapterSet(model.double())
    spec = config or LoraConfig(rank=2)
    if isinstance(spec, LoraConfig):
        adapters.attach(choose(model, spec), "default")
    else:
        add_layers(adapters, spec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.data = parameter.double() + 0.1 * torch.randn(parameter.shape, generator=generator).double()
    return model, adapters


def batch_of(count: int, seed: int = 0) -> Batch:
    pixels = images(count, seed=seed).double()
    return Batch({"pixel_values": pixels}, torch.arange(count) % 3, count, 4 * count, images=count)


def logits_of(module: nn.Module, batch: Batch) -> Tensor:
    return module(batch.inputs["pixel_values"]).logits


def loss_of(module: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(logits_of(module, batch), batch.targets, reduction="sum")


def gradients(loss: Tensor, adapters: AdapterSet) -> list[Tensor]:
    found = torch.autograd.grad(loss, adapters.parameters(), allow_unused=True)
    return [torch.zeros(1) if one is None else one for one in found]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.allclose(one, other, rtol=1e-8, atol=1e-10) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("config", [LoraConfig(rank=2), AdaLoraConfig(budget=2)], ids=["lora", "adalora"])
@pytest.mark.parametrize("family", KNOWN)
def test_logits_and_gradients_are_those_of_the_models_own_code(
    family: str, config: LoraConfig | AdaLoraConfig
) -> None:  # fmt: skip
    model, adapters = adapted(family, config)
    batch, loss = batch_of(3), partial(loss_of, model)
    expected, theirs = logits_of(model, batch), gradients(loss(batch), adapters)
    encoder = FusedEncoder(model, loss)
    with encoder.active():
        ours = logits_of(model, batch)
        own = gradients(encoder(batch), adapters)
    assert torch.allclose(ours, expected, rtol=1e-9, atol=1e-10)
    assert same(own, theirs)
    assert torch.equal(logits_of(model, batch), expected), "outside, the model's own code runs again"


@pytest.mark.parametrize("family", FAMILIES)
def test_only_known_blocks_on_a_processor_have_kernels(family: str) -> None:
    model, _ = tiny(family)
    model.requires_grad_(False)
    assert has_encoder_kernels(model) == (family in KNOWN)


def test_a_block_of_another_model_with_a_known_name_has_no_kernels() -> None:
    model, _ = tiny("vit")
    model.requires_grad_(False)
    blocks = encoder_blocks(model)
    type(blocks[0]).__module__, before = "elsewhere", type(blocks[0]).__module__
    try:
        assert not has_encoder_kernels(model)
    finally:
        type(blocks[0]).__module__ = before


def test_weights_that_learn_inside_a_block_have_no_kernels() -> None:
    model, _ = tiny("vit")
    assert not has_encoder_kernels(model)


@pytest.mark.parametrize(("layers", "lowest"), [((1,), 1), (None, 0)])
def test_the_lowest_block_that_learns_is_that_of_the_lowest_adapter(layers: tuple[int] | None, lowest: int) -> None:
    model, _ = adapted("dinov2", LoraConfig(rank=2, layers=layers, targets=("q_proj",)))
    assert lowest_block_that_learns(model) == lowest


def test_where_only_the_head_learns_all_blocks_lie_below() -> None:
    model, _ = tiny("dinov2")
    AdapterSet(model).add_heads(["classifier"])
    assert lowest_block_that_learns(model) == len(encoder_blocks(model)) == 2


@pytest.mark.parametrize("family", KNOWN)
def test_cached_states_give_the_same_loss_and_gradients(family: str) -> None:
    model, adapters = adapted(family, LoraConfig(rank=2, layers=(1,), targets=("q_proj", "v_proj")))
    loss = partial(loss_of, model)
    first, second = batch_of(3), batch_of(3, seed=1)
    expected = [gradients(loss(batch), adapters) for batch in (first, second, first)]
    encoder = FusedEncoder(model, loss, lowest=1, room=10**9)
    with encoder.active():
        found = [gradients(encoder(batch), adapters) for batch in (first, second, first)]
    assert all(same(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("room", [0, 10**9])
def test_blocks_below_are_computed_once_for_each_image_as_far_as_there_is_room(room: int) -> None:
    model, _ = adapted("vit", LoraConfig(rank=2, layers=(1,), targets=("q_proj",)))
    calls: list[int] = []
    encoder = FusedEncoder(model, partial(loss_of, model), lowest=1, room=room)
    with encoder.active():
        compute = encoder._below
        encoder._below = lambda batch: (calls.append(1), compute(batch))[1]
        for _ in range(3):
            encoder(batch_of(2))
    assert len(calls) == (2 if room else 6)


def test_an_images_numbers_do_not_depend_on_its_neighbours() -> None:
    model, _ = adapted("vit", LoraConfig(rank=2, layers=(1,), targets=("q_proj",)))
    states = []
    for count in (1, 4):
        encoder = FusedEncoder(model, partial(loss_of, model), lowest=1, room=10**9)
        with encoder.active():
            encoder(batch_of(4) if count == 4 else _first_of(batch_of(4)))
        assert encoder._cache is not None
        states.append(next(iter(encoder._cache._cached.values())))
    assert torch.equal(*states)


def _first_of(batch: Batch) -> Batch:
    inputs = {"pixel_values": batch.inputs["pixel_values"][:1]}
    return Batch(inputs, batch.targets[:1], 1, 4, images=1)


@pytest.mark.parametrize("recomputed", [1, 2])
def test_recomputed_blocks_give_the_same_gradients_and_save_less(recomputed: int) -> None:
    model, adapters = adapted("dinov2")
    loss, batch = partial(loss_of, model), batch_of(6)
    theirs = gradients(loss(batch), adapters)
    sizes = []
    for count in (0, recomputed):
        encoder = FusedEncoder(model, loss, recomputed=count)
        with encoder.active():
            assert same(gradients(encoder(batch), adapters), theirs)
            sizes.append(saved_bytes(encoder, batch, model))
    assert sizes[1] < sizes[0]


def test_kernels_save_less_than_the_models_own_code() -> None:
    model, _ = adapted("dinov2")
    loss, batch = partial(loss_of, model), batch_of(6)
    eager = saved_bytes(loss, batch, model)
    with FusedEncoder(model, loss).active():
        assert saved_bytes(loss, batch, model) < 0.8 * eager


def test_agreement_sees_a_wrong_scale() -> None:
    model, adapters = adapted("dinov2")
    plain = partial(logits_of, model)
    assert encoder_agreement(model, adapters.parameters(), plain, batch_of(2)).agrees
    block = encoder_blocks(model)[1]
    assert isinstance(block.attention, nn.Module)
    own = block.attention.forward
    block.attention.forward = lambda *given, **named: (1.01 * own(*given, **named)[0], None)
    assert not encoder_agreement(model, adapters.parameters(), plain, batch_of(2)).agrees


# Encoders of texts


def texts(count: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask (B, 9) of texts of several lengths."""
    ids = torch.randint(5, 30, (count, 9), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(9) < torch.tensor([9, 4, 1, 6][:count])[:, None]).long()
    return ids.masked_fill(mask == 0, 0), mask


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_padded_texts_give_the_logits_and_gradients_of_the_models_own_code(family: str, implementation: str) -> None:
    kinds = {"bert": BertForSequenceClassification, "roberta": RobertaForSequenceClassification}
    torch.manual_seed(0)
    config = kinds[family].config_class(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=20, pad_token_id=0, attn_implementation=implementation,
    )  # fmt: skip
    model = kinds[family](config).double().eval()
    adapters = AdapterSet(model)
    adapters.attach(choose(model, LoraConfig(rank=2, targets=("query", "value", "dense"))), "default")
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.data = parameter.double() + 0.1
    ids, mask = texts(4)

    def loss(_: Batch | None = None) -> Tensor:
        return model(input_ids=ids, attention_mask=mask).logits.square().sum()

    expected, theirs = loss().detach(), gradients(loss(), adapters)
    assert has_encoder_kernels(model)
    with FusedEncoder(model, loss).active():
        assert torch.allclose(loss(), expected, rtol=1e-9)
        assert same(gradients(loss(), adapters), theirs)


def test_a_decoder_of_bert_blocks_has_no_kernels() -> None:
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, is_decoder=True
    )
    model = BertForSequenceClassification(config).requires_grad_(False)
    assert not has_encoder_kernels(model)
