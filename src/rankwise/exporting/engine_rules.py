"""Each engine's own rule for an adapter in PEFT's format: the scale that it applies, and what it refuses or drops.

    change of a layer  =  scale * B A            scale:  alpha / rank, or alpha / sqrt(rank) with rsLoRA

Engines disagree about alpha and rank: some follow rank_pattern and alpha_pattern for each layer, some read the two
numbers at the top of adapter_config.json, some take the rank from the tensor, and one never opens that file. Nearly all
of them differ in silence:

    patterns    alpha_pattern and rank_pattern for each layer, rsLoRA    alpha_l / rank_l, alpha_l / sqrt(rank_l)
    top         the two numbers at the top of the file alone             alpha / r
    top-rslora  and rsLoRA                                               alpha / r or alpha / sqrt(r)
    tensor      the rank of the tensor itself, and 1 for an alpha of 0   alpha / rows of A
    one         the file is not read                                     1
    none        the folder is not read                                   no scale

`verdicts` says for one adapter which engines apply the change that was trained.

The file of each engine names where its rule comes from: `read` in the engine's public source at that version, or
`notes` of an earlier reading that could not be repeated. No rule was taken from running the engine; tests run PEFT's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rankwise.adapters.weights import AdapterWeights, Factors
from rankwise.config.expressions import first_matching
from rankwise.exporting.engines.engine import Engine
from rankwise.exporting.engines.table import ENGINES


@dataclass(frozen=True)
class DeclaredRules:
    """What adapter_config.json declares, with its patterns resolved by PEFT's rule: the first key that matches."""

    r: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, float]
    alphas: Mapping[str, float]


def declared(weights: AdapterWeights) -> DeclaredRules | None:
    """None where the settings are not PEFT's. AdaLoRA divides by its rank at the start, whatever is left of it."""
    settings, paths = weights.settings, list(weights.factors)
    adalora, alpha = settings.get("peft_type") == "ADALORA", settings.get("lora_alpha")
    r = settings.get("init_r" if adalora else "r")
    if not isinstance(alpha, int | float) or not isinstance(r, int) or r < 1:
        return None
    if adalora:
        return DeclaredRules(
            r, alpha, False, dict.fromkeys(paths, r + 1e-5), dict.fromkeys(paths, alpha if alpha > 0 else r)
        )
    ranks = first_matching(settings.get("rank_pattern") or {}, paths, "rank_pattern", r)
    alphas = first_matching(settings.get("alpha_pattern") or {}, paths, "alpha_pattern", alpha)
    return DeclaredRules(r, alpha, bool(settings.get("use_rslora")), ranks, alphas)


def _ratio(alpha: float, rank: float, rslora: bool) -> float:
    return alpha / (math.sqrt(rank) if rslora else rank)


_RULES: dict[str, Callable[[DeclaredRules, str, Factors], float | None]] = {
    "patterns": lambda facts, path, part: _ratio(facts.alphas[path], facts.ranks[path], facts.rslora),
    "top": lambda facts, path, part: _ratio(facts.alpha, facts.r, False),
    "top-rslora": lambda facts, path, part: _ratio(facts.alpha, facts.r, facts.rslora),
    "tensor": lambda facts, path, part: facts.alpha / part.rank if facts.alpha and part.rank else 1.0,
    "one": lambda facts, path, part: 1.0,
    "none": lambda facts, path, part: None,
}


NEAR = 1e-4
"""How much an engine's scale may differ: alpha may be rounded to an integer divided by a rank of thousands."""
SCALED = ("LORA", "ADALORA")
RULES: dict[str, Engine] = {engine.name: engine for engine in ENGINES if engine.scale}
"""By the engine's name, of those that read adapters."""


def verdicts(weights: AdapterWeights) -> dict[str, str | None]:
    """For each engine None where it applies the change that was trained, or else a sentence why not.

    The sentence says whether the engine refuses the adapter, drops a part of it, or scales it otherwise, and by which
    factor. `weights` are as they lie in the folder that the engine reads.
    """
    if (kind := weights.settings.get("peft_type", "LORA")) not in SCALED:
        return _by_peft_alone(f"reads no {kind}; export it as peft or portable, which write plain LoRA.")
    if weights.settings.get("task_type") == "SEQ_2_SEQ_LM":
        return _by_peft_alone("is not known to read adapters of an encoder with a decoder.")
    facts = declared(weights)
    return {name: _verdict(rule, weights, facts) for name, rule in RULES.items()}


def _by_peft_alone(reason: str) -> dict[str, str | None]:
    return {name: None if "methods" in rule.reads else f"{name} {reason}" for name, rule in RULES.items()}


def factors_by_layer(engine: str, weights: AdapterWeights) -> dict[str, float]:
    """How many times the trained change an engine applies in each layer that has a rank; empty where it reads none."""
    facts = declared(weights)
    return {} if facts is None else _factors(RULES[engine], weights, facts)


def _verdict(rule: Engine, weights: AdapterWeights, facts: DeclaredRules | None) -> str | None:
    if facts is None:
        return f"{rule.name} reads adapters in another format; export this adapter first."
    if weights.tokens and "tokens" not in rule.reads:
        return f"{rule.name} is not known to read the rows of new tokens (trainable_token_indices); merge instead."
    if weights.has_experts and "experts" not in rule.reads:
        reason = "is not known to read factors of experts that lie in one parameter (target_parameters); merge instead"
        return f"{rule.name} {reason}."
    for problem in rule.problems:
        if (reason := problem(weights)) is not None:
            return f"{rule.name} {reason}."
    factors = _factors(rule, weights, facts)
    wrong = {path: factor for path, factor in factors.items() if abs(factor - 1) > NEAR}
    return f"{rule.name} {_described(wrong, len(factors))}." if wrong else None


def _factors(rule: Engine, weights: AdapterWeights, facts: DeclaredRules) -> dict[str, float]:
    found = dict[str, float]()
    for path, part in weights.factors.items():
        scale = _RULES[rule.scale](facts, path, part)
        if part.rank and part.scale and scale is not None:
            found[path] = scale / part.scale
    return found


def _described(wrong: Mapping[str, float], layers: int) -> str:
    """The factors in a few words."""
    least, most = min(wrong.values()), max(wrong.values())
    where = f"all {layers:,} layers" if len(wrong) == layers else f"{len(wrong):,} of {layers:,} layers"
    path = max(wrong, key=lambda path: abs(wrong[path] - 1))
    if most - least <= NEAR * abs(most):
        return f'applies {most:.4g} times the trained change in {where}, such as "{path}"'
    return (
        f'applies {least:.4g} to {most:.4g} times the trained change in {where}, such as {wrong[path]:.4g} in "{path}"'
    )
