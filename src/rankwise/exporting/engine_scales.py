"""The scales that engines compute from adapter_config.json and from the tensors' ranks.

patterns         alpha_pattern and rank_pattern for each layer, rsLoRA       alpha_l / rank_l or alpha_l / sqrt(rank_l)
top              the two numbers at the top of the file alone                alpha / r
top-rslora       and rsLoRA                                                  alpha / r or alpha / sqrt(r)
top-rslora-linear  the same, but embeddings are not scaled                   1 for an embedding
tensor           the rank of the tensor itself, and 1 for an alpha of 0      alpha / rows of A
tensor-rslora    and rsLoRA                                                  alpha / rows of A or its square root
one              the file is not read                                        1
none             the folder is not read                                      no scale
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rankwise.adapters.weights import AdapterWeights, Factors
from rankwise.config.expressions import first_matching


@dataclass(frozen=True)
class Declared:
    """What adapter_config.json declares, with its patterns resolved by PEFT's rule: the first key that matches."""

    r: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    adalora: bool
    initial_rank: int
    """AdaLoRA's rank at the start, which it divides by whatever is left."""


def declared(weights: AdapterWeights) -> Declared | None:
    """None where the settings are not PEFT's."""
    settings, paths = weights.settings, list(weights.factors)
    adalora, alpha = settings.get("peft_type") == "ADALORA", settings.get("lora_alpha")
    r = settings.get("init_r" if adalora else "r")
    if not isinstance(alpha, int | float) or not isinstance(r, int) or r < 1:
        return None
    masks = adalora or not settings.get("rank_pattern")
    ranks = first_matching({} if masks else settings["rank_pattern"], paths, "rank_pattern", r)
    alphas = first_matching({} if adalora else settings.get("alpha_pattern") or {}, paths, "alpha_pattern", alpha)
    rslora = bool(settings.get("use_rslora")) and not adalora
    return Declared(r, alpha, rslora, ranks, alphas, adalora, r)


def scale_of(rule: str, facts: Declared, path: str, part: Factors) -> float | None:
    """The scale of one layer by one of the rules above."""
    return _RULES[rule](facts, path, part)


def _patterns(facts: Declared, path: str, part: Factors) -> float:
    if facts.adalora:
        return (facts.alpha if facts.alpha > 0 else facts.r) / (facts.initial_rank + 1e-5)
    return _ratio(facts.alphas[path], facts.ranks[path], facts.rslora)


def _tensor(facts: Declared, part: Factors, *, rslora: bool) -> float:
    if not facts.alpha or not part.rank:
        return 1.0
    return _ratio(facts.alpha, part.rank, rslora)


def _ratio(alpha: float, rank: int, rslora: bool) -> float:
    return alpha / (math.sqrt(rank) if rslora else rank)


_RULES: dict[str, Callable[[Declared, str, Factors], float | None]] = {
    "patterns": _patterns,
    "top": lambda facts, path, part: _ratio(facts.alpha, facts.r, False),
    "top-rslora": lambda facts, path, part: _ratio(facts.alpha, facts.r, facts.rslora),
    "top-rslora-linear": lambda facts, path, part: (
        1.0 if part.embedding else _ratio(facts.alpha, facts.r, facts.rslora)
    ),
    "tensor": lambda facts, path, part: _tensor(facts, part, rslora=False),
    "tensor-rslora": lambda facts, path, part: _tensor(facts, part, rslora=facts.rslora),
    "one": lambda facts, path, part: 1.0,
    "none": lambda facts, path, part: None,
}
