"""Models that plans know by name, so that nothing has to be fetched: what their config.json says of their shape.

A model is found by the name here or by that of the hub. Only settings that decide a shape are held, in the words of
config.json; tests hold the number of parameters of each against the one that was published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rankwise.planning.catalogue_tables import BERTS, DEBERTAS, GATED, GPTS, NEOX, OPTS, SEQ2SEQ, VISIONS


@dataclass(frozen=True)
class Known:
    """`hub` are the names of models on the hub that have this shape; GPT-3's weights were never given out."""

    name: str
    hub: tuple[str, ...]
    config: dict[str, Any]


def _named(name: str, hub: str, config: dict[str, Any], more: dict[str, Any]) -> Known:
    return Known(name, tuple(hub.split()), config | more)


def _gated(family: str, name: str, hub: str, sizes: tuple[int, ...], **more: Any) -> Known:
    keys = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings",
    )  # fmt: skip
    return _named(name, hub, {"model_type": family} | dict(zip(keys, sizes, strict=True)), more)


def _neox(name: str, hub: str, sizes: tuple[int, ...], **more: Any) -> Known:
    vocabulary, width, blocks, heads, context = sizes
    config = {
        "model_type": "gpt_neox", "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 4 * width,
        "num_hidden_layers": blocks, "num_attention_heads": heads, "max_position_embeddings": context,
    }  # fmt: skip
    return _named(name, hub, config, more)


def _gpt(family: str, name: str, hub: str, sizes: tuple[int, ...], **more: Any) -> Known:
    keys = ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions")
    return _named(name, hub, {"model_type": family} | dict(zip(keys, sizes, strict=True)), more)


def _opt(name: str, hub: str, sizes: tuple[int, ...], **more: Any) -> Known:
    vocabulary, width, blocks, heads = sizes
    config = {
        "model_type": "opt", "vocab_size": vocabulary, "hidden_size": width, "ffn_dim": 4 * width,
        "num_hidden_layers": blocks, "num_attention_heads": heads, "max_position_embeddings": 2048,
    }  # fmt: skip
    return _named(name, hub, config, more)


def _encoder(family: str, name: str, hub: str, sizes: tuple[int, ...], **more: Any) -> Known:
    vocabulary, width, blocks, heads, positions = sizes
    config = {
        "model_type": family, "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 4 * width,
        "num_hidden_layers": blocks, "num_attention_heads": heads, "max_position_embeddings": positions,
    }  # fmt: skip
    return _named(name, hub, config, more)


def _deberta(name: str, hub: str, sizes: tuple[int, ...], **more: Any) -> Known:
    relative = {
        "type_vocab_size": 0, "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm",
        "share_att_key": True, "pos_att_type": "p2c|c2p", "position_biased_input": False,
    }  # fmt: skip
    return _encoder("deberta-v2", name, hub, (128100, *sizes, 512), **(relative | more))


def _written(family: str, name: str, hub: str, config: dict[str, Any]) -> Known:
    return _named(name, hub, {"model_type": family}, config)


CATALOGUE: dict[str, Known] = {
    known.name: known
    for known in (
        *(_gated(*row[:4], **row[4]) for row in GATED),
        *(_neox(*row) for row in NEOX),
        *(_gpt(*row) for row in GPTS),
        *(_opt(*row[:3], **row[3]) for row in OPTS),
        *(_encoder(*row[:4], **row[4]) for row in BERTS),
        *(_deberta(*row[:3], **row[3]) for row in DEBERTAS),
        *(_written(*row) for row in (*SEQ2SEQ, *VISIONS)),
    )
}
BY_NAME: dict[str, Known] = {name.lower(): known for known in CATALOGUE.values() for name in (known.name, *known.hub)}
"""The hub's names among them, in small letters."""


def known_as(name: str) -> Known | None:
    return BY_NAME.get(name.lower())
