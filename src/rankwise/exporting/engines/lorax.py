"""LoRAX, which stacks all blocks of a kind of layer."""

from __future__ import annotations

import re
from functools import partial

from rankwise.adapters.weights import AdapterWeights, missing_blocks
from rankwise.errors import some
from rankwise.exporting.engines.engine import Engine, adalora, convolutions, embeddings, heads, magnitudes

_BLOCK = re.compile(r"\.\d+\.")


def _uneven_kinds(weights: AdapterWeights) -> str | None:
    ranks = dict[str, set[int]]()
    for path, part in weights.factors.items():
        ranks.setdefault(_BLOCK.sub(".", path, count=1), set()).add(part.rank)
    kind = next((kind for kind, several in ranks.items() if len(several) > 1), None)
    if kind is None:
        return None
    return f'needs one rank in all blocks, and "{kind}" has {some(map(str, sorted(ranks[kind])), 4)}'


def _gaps(weights: AdapterWeights) -> str | None:
    kind = next((kind for kind, blocks in missing_blocks(weights).items() if blocks), None)
    return None if kind is None else f'drops "{kind}" everywhere, since one block has no factors for it'


ENGINE = Engine(
    "LoRAX", "03679f3", "server/lorax_server/adapters/lora.py", "top-rslora",
    (adalora, partial(magnitudes, does="drops DoRA's magnitudes"), partial(heads, does="drops"),
     partial(embeddings, does="drops"), partial(convolutions, does="has no layer for"), _uneven_kinds, _gaps),
)  # fmt: skip
