"""Each engine's own rule for an adapter in PEFT's format: the scale that it applies, and what it refuses or drops.

    change of a layer  =  scale * B A            scale:  alpha / rank, or alpha / sqrt(rank) with rsLoRA

Engines disagree about alpha and rank: some follow rank_pattern and alpha_pattern for each layer, some read the two
numbers at the top of adapter_config.json, some take the rank from the tensor, and one never opens that file. Nearly all
of them differ in silence:

    patterns           alpha_pattern and rank_pattern for each layer, rsLoRA    alpha_l / rank_l, alpha_l / sqrt(rank_l)
    top                the two numbers at the top of the file alone             alpha / r
    top-rslora         and rsLoRA                                               alpha / r or alpha / sqrt(r)
    top-rslora-linear  the same, but embeddings are not scaled                  1 for an embedding
    tensor             the rank of the tensor itself, and 1 for an alpha of 0   alpha / rows of A
    tensor-rslora      and rsLoRA                                               alpha / rows of A or its square root
    one                the file is not read                                     1
    none               the folder is not read                                   no scale

`verdicts` says for one adapter which engines apply the change that was trained.

Each rule names where it comes from: `read` in the engine's public source at that version, or `notes` of an earlier
reading that could not be repeated. No rule was taken from running the engine; tests run PEFT's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from rankwise.adapters.weights import AdapterWeights, Factors, missing_blocks
from rankwise.config.expressions import first_matching
from rankwise.errors import some


@dataclass(frozen=True)
class Declared:
    """What adapter_config.json declares, with its patterns resolved by PEFT's rule: the first key that matches."""

    r: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    adalora: bool
    """Then `r` is the rank at the start, which it divides by whatever is left."""


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
    return Declared(r, alpha, rslora, ranks, alphas, adalora)


def _patterns(facts: Declared, path: str, part: Factors) -> float:
    if facts.adalora:
        return (facts.alpha if facts.alpha > 0 else facts.r) / (facts.r + 1e-5)
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


NEAR = 1e-4
"""How much an engine's scale may differ: alpha may be rounded to an integer divided by a rank of thousands."""
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values of vLLM's flag --max-lora-rank."""
READ_TOKENS = ("PEFT", "transformers")
"""Engines that read the rows of new tokens."""
READ_EXPERTS = ("PEFT", "transformers")
"""Engines that read the factors of stacked experts. Public threads of vLLM in 2026 tell of such files that it drops,
reads the other way round or fails on (vllm-project/vllm, 41384 and 52198)."""
OF_PEFT = ("PEFT", "transformers")
"""What lays adapters over models such as T5 and BART, and reads PEFT's methods without a scale."""
SCALED = ("LORA", "ADALORA")
Problem = Callable[[AdapterWeights], str | None]
_BLOCK = re.compile(r"\.\d+\.")
_OLLAMA = re.compile(r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)")


@dataclass(frozen=True)
class EngineRule:
    """What one engine does with an adapter's folder."""

    name: str
    version: str
    source: str
    """The file of the engine that says so."""
    evidence: Literal["read", "notes"]
    scale: str
    """The name of its rule for scales."""
    problems: tuple[Problem, ...] = ()
    """What it refuses or drops, each as the rest of a sentence that begins with the engine's name."""


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
    return {name: None if name in OF_PEFT else f"{name} {reason}" for name in RULES}


def factors_by_layer(engine: str, weights: AdapterWeights) -> dict[str, float]:
    """How many times the trained change an engine applies in each layer that has a rank; empty where it reads none."""
    facts = declared(weights)
    return {} if facts is None else _factors(RULES[engine], weights, facts)


def _verdict(rule: EngineRule, weights: AdapterWeights, facts: Declared | None) -> str | None:
    if facts is None:
        return f"{rule.name} reads adapters in another format; export this adapter first."
    if weights.tokens and rule.name not in READ_TOKENS:
        return f"{rule.name} is not known to read the rows of new tokens (trainable_token_indices); merge instead."
    if rule.name not in READ_EXPERTS and weights.has_experts:
        reason = "is not known to read factors of experts that lie in one parameter (target_parameters); merge instead"
        return f"{rule.name} {reason}."
    for problem in rule.problems:
        if (reason := problem(weights)) is not None:
            return f"{rule.name} {reason}."
    factors = _factors(rule, weights, facts)
    wrong = {path: factor for path, factor in factors.items() if abs(factor - 1) > NEAR}
    return f"{rule.name} {_described(wrong, len(factors))}." if wrong else None


def _factors(rule: EngineRule, weights: AdapterWeights, facts: Declared) -> dict[str, float]:
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


def _adalora(weights: AdapterWeights) -> str | None:
    adalora = weights.settings.get("peft_type") == "ADALORA"
    return "refuses PEFT's AdaLoRA; export it as peft or portable, which write plain LoRA" if adalora else None


def _dora(weights: AdapterWeights, does: str = "refuses DoRA") -> str | None:
    return does if weights.is_dora else None


def _heads(weights: AdapterWeights, does: str, allowed: tuple[str, ...] = ()) -> str | None:
    """Modules that were trained whole."""
    names = [name for name in weights.heads if not any(f".{one}." in f".{name}" for one in allowed)]
    return f'{does} the fully trained weights, such as "{names[0]}"' if names else None


def _of_kind(weights: AdapterWeights, does: str, *, embedding: bool = False, convolution: bool = False) -> str | None:
    named = [
        path
        for path, part in weights.factors.items()
        if part.rank and ((embedding and part.embedding) or (convolution and part.A.ndim != len(("rank", "in"))))
    ]
    kind = "embedding" if embedding else "convolution"
    return f'{does} the adapter of the {kind} "{named[0]}"' if named else None


_embeddings = partial(_of_kind, embedding=True)
_convolutions = partial(_of_kind, convolution=True)


def _transposed(weights: AdapterWeights) -> str | None:
    """GPT-2's converter transposes a Conv1D's weight, and with it the product that PEFT stored the other way round."""
    conv1d = bool(weights.settings.get("fan_in_fan_out")) and bool(weights.factors)
    return (
        "transposes adapters of Conv1D layers in its converter (fan_in_fan_out), so they do not fit" if conv1d else None
    )


def _uneven(weights: AdapterWeights) -> str | None:
    """SGLang's buffers have r rows for each layer."""
    rank = weights.settings.get("r", weights.rank)
    other = {path: part.rank for path, part in weights.factors.items() if part.rank not in (0, rank)}
    path = next(iter(other), None)
    return None if path is None else f'needs rank {rank} in every layer, and "{path}" has rank {other[path]}'


def _without_value(weights: AdapterWeights) -> str | None:
    """SGLang stacks query, key and value."""
    paths = set(weights.factors)
    for path in weights.factors:
        outer, _, leaf = path.rpartition(".")
        if leaf in ("q_proj", "k_proj") and f"{outer}.v_proj" not in paths:
            return f'needs factors of v_proj beside those of {leaf}, and "{outer}.v_proj" has none'
    return None


def _uneven_kinds(weights: AdapterWeights) -> str | None:
    """LoRAX stacks all blocks of a kind of layer."""
    ranks = dict[str, set[int]]()
    for path, part in weights.factors.items():
        ranks.setdefault(_BLOCK.sub(".", path, count=1), set()).add(part.rank)
    kinds = [kind for kind, several in ranks.items() if len(several) > 1]
    return (
        f'needs one rank in all blocks, and "{kinds[0]}" has {some(map(str, sorted(ranks[kinds[0]])), 4)}'
        if kinds
        else None
    )


def _gaps(weights: AdapterWeights) -> str | None:
    kinds = [kind for kind, blocks in missing_blocks(weights).items() if blocks]
    return f'drops "{kinds[0]}" everywhere, since one block has no factors for it' if kinds else None


def _no_integer(weights: AdapterWeights) -> str | None:
    alpha = weights.settings.get("lora_alpha")
    return None if isinstance(alpha, int) else f"refuses lora_alpha {alpha}, since it reads an integer"


def _too_large(weights: AdapterWeights) -> str | None:
    return f"knows ranks up to {VLLM_RANKS[-1]}, and this is {weights.rank}" if weights.rank > VLLM_RANKS[-1] else None


def _unnamed(weights: AdapterWeights) -> str | None:
    """Ollama's converter knows the linear layers of a Llama by name."""
    path = next((path for path in weights.factors if _OLLAMA.fullmatch(path) is None), None)
    return None if path is None else f'has no name for "{path}" in its converter, so it refuses the adapter'


def _other_format(weights: AdapterWeights) -> str | None:
    return "reads no folders of PEFT, only its own format (adapters.safetensors and lora_parameters); merge instead"


def _rules() -> Iterable[EngineRule]:
    yield EngineRule("PEFT", "0.21.2", "peft/tuners/lora/layer.py, peft/utils/other.py", "read", "patterns")
    yield EngineRule(
        "transformers", "5.24.0", "transformers/integrations/peft.py (PEFT does the work)", "read", "patterns"
    )
    yield EngineRule(
        "vLLM", "0.33", "vllm/lora/peft_helper.py, lora_model.py", "notes", "patterns",
        (_adalora, _dora, partial(_heads, does="refuses", allowed=("classifier", "score")), _too_large,
         partial(_convolutions, does="has no layer for")),
    )  # fmt: skip
    yield EngineRule(
        "SGLang", "0.5.23", "python/sglang/srt/lora/lora.py, mem_pool.py", "notes", "top",
        (_adalora, _dora, partial(_heads, does="does not load"), _uneven, _without_value,
         partial(_convolutions, does="has no layer for")),
    )  # fmt: skip
    yield EngineRule(
        "llama.cpp", "convert_lora_to_gguf.py of 0b03ada, src/llama-adapter.h of 215841f", "the same", "read", "tensor",
        (_adalora, _dora, partial(_heads, does="refuses"), partial(_convolutions, does="refuses"), _transposed),
    )  # fmt: skip
    yield EngineRule(
        "Ollama", "0.33.0-rc2 (fb30760)", "convert/convert.go, convert_llama_adapter.go", "read", "tensor",
        (_adalora, _dora, partial(_heads, does="refuses"), _no_integer, _unnamed),
    )  # fmt: skip
    yield EngineRule(
        "LoRAX", "03679f3", "server/lorax_server/adapters/lora.py", "read", "top-rslora",
        (_adalora, partial(_dora, does="drops DoRA's magnitudes"), partial(_heads, does="drops"),
         partial(_embeddings, does="drops"), partial(_convolutions, does="has no layer for"), _uneven_kinds, _gaps),
    )  # fmt: skip
    yield EngineRule(
        "OpenVINO GenAI", "da1db86", "src/cpp/src/lora/adapter.cpp", "read", "one",
        (_adalora, partial(_dora, does="drops DoRA's magnitudes"), partial(_heads, does="drops"),
         partial(_embeddings, does="drops"), partial(_convolutions, does="has no layer for")),
    )  # fmt: skip
    yield EngineRule("mlx-lm", "0.32.0 (d78bf58)", "mlx_lm/tuner/utils.py", "read", "none", (_other_format,))
    yield EngineRule(
        "Olive", "0.11.0.dev0 (ee6f40f)", "olive/cli/convert_adapters.py", "read", "top-rslora-linear",
        (_adalora, _dora, partial(_heads, does="has no place for")),
    )  # fmt: skip
    yield EngineRule(
        "TensorRT-LLM", "007e181", "tensorrt_llm/lora_manager.py", "read", "tensor-rslora",
        (_adalora, partial(_heads, does="does not load"), partial(_convolutions, does="has no layer for")),
    )  # fmt: skip


RULES: dict[str, EngineRule] = {rule.name: rule for rule in _rules()}
"""By the engine's name."""
