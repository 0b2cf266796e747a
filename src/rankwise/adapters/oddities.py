"""What looks wrong in an adapter and may be right: absurd scales, and layers that only some blocks have.

Only the file is looked at, without its model, so nothing here refuses an adapter; it is said as a warning. A scale is
called absurd above 100: alpha / r is 1 to 4 in common recipes, rsLoRA's alpha / sqrt(r) seldom above 30, and mlx-lm's
default is 20. A block that lacks a layer which its neighbours on both sides adapt was probably lost on the way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from rankwise.adapters.weights import AdapterWeights
from rankwise.config.matching import ranges
from rankwise.errors import some

LARGEST_SCALE, SMALLEST_SCALE = 100.0, 1e-4
MOST_BLOCKS = 10_000
_BLOCK = re.compile(r"\.(\d+)(?=\.)")


def oddities(weights: AdapterWeights) -> list[str]:
    """Warnings in sentences, empty for an ordinary adapter."""
    scales = {path: part.scale for path, part in weights.factors.items() if part.rank}
    return [*_scale_warnings(scales), *_gap_warnings(weights)]


def _scale_warnings(scales: Mapping[str, float]) -> list[str]:
    absurd = {path: scale for path, scale in scales.items() if not SMALLEST_SCALE <= abs(scale) <= LARGEST_SCALE}
    if not absurd:
        return []
    path = max(absurd, key=lambda path: abs(absurd[path]))
    return [
        f'{len(absurd):,} of {len(scales):,} layers have an unusual scale, such as {absurd[path]:g} in "{path}"; '
        f"scales are {SMALLEST_SCALE:g} to {LARGEST_SCALE:g} in ordinary adapters; check lora_alpha and alpha_pattern"
    ]


def _gap_warnings(weights: AdapterWeights) -> list[str]:
    gaps = {kind: numbers for kind, numbers in missing_blocks(weights).items() if numbers}
    if not gaps:
        return []
    named = [f"{kind} in block {ranges(numbers)}" for kind, numbers in gaps.items()]
    return [
        f"the adapter has no factors for {some(named, 4)}, although it has some in the blocks before and after; they "
        "may have been lost"
    ]


def missing_blocks(weights: AdapterWeights) -> dict[str, list[int]]:
    """By kind of layer (`self_attn.q_proj`), the blocks without factors between the first and the last that has them.

    A kind that is in fewer than half of the blocks between was chosen so, as AdaLoRA does, and is left out.
    """
    blocks = dict[str, set[int]]()
    for path in weights.factors:
        match = _BLOCK.search(path)
        if match is not None and len(match[1]) < len(str(MOST_BLOCKS)):
            blocks.setdefault(path[match.end() + 1 :], set()).add(int(match[1]))
    between = {kind: set(range(min(numbers), max(numbers) + 1)) for kind, numbers in blocks.items()}
    return {
        kind: sorted(between[kind] - numbers) if len(between[kind]) < 2 * len(numbers) else []
        for kind, numbers in blocks.items()
    }
