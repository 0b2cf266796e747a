"""What there is to know of an engine, and what several of them refuse or drop of an adapter.

An engine that verifies exports is asked in an environment of its own, which need not have rankwise or torch. Its file
has a function `answer` from a request to a reply (exporting/engine_process.py), and imports at its top only this file
and the standard library; exporting/engine_child.py runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rankwise.adapters.weights import AdapterWeights

Problem = Callable[["AdapterWeights"], "str | None"]
"""What an engine refuses or drops, as the rest of a sentence that begins with its name."""


@dataclass(frozen=True)
class Package:
    """What opens exports to verify them: the file with its `answer`, and the modules by which an environment is known
    to have it. `name` is that of the verdict."""

    name: str
    file: str
    modules: tuple[str, ...]
    formats: tuple[str, ...] = ()


@dataclass(frozen=True)
class Engine:
    name: str
    version: str
    """The release or commit of the engine for which its rule for adapters in PEFT's format is known."""
    source: str
    """The file of the engine that says so."""
    scale: str
    """The name of its rule for scales (exporting/engine_rules.py); empty where it reads no adapters."""
    problems: tuple[Problem, ...] = ()
    evidence: Literal["read", "notes"] = "read"
    reads: frozenset[str] = frozenset()
    """What it reads beside the factors of LoRA and AdaLoRA: all of PEFT's `methods`, rows of new `tokens`, stacked
    `experts`. Public threads of vLLM in 2026 tell of files of experts that it drops, reads the other way round or fails
    on (vllm-project/vllm, 41384 and 52198)."""
    uses: Mapping[str, str] = field(default_factory=dict[str, str])
    """How to use an export in FOLDER or FILE.gguf, by its format; those of its own first."""
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    """Formats by the names that its users are likely to try."""
    package: Package | None = None


def decoded(path: str) -> Any:
    """The upright image in RGB."""
    from PIL import Image, ImageOps

    return ImageOps.exif_transpose(Image.open(path)).convert("RGB")


def probabilities(logits: Any, config: dict[str, Any], question: dict[str, Any], classes: list[str]) -> list[float]:
    """A row's outputs as a reply has them, of the logits (C) of a row or (T, C) of its tokens: by the names that a
    config.json gives them, in the order of `classes`; or its number. Of words, those of their first tokens."""
    import numpy as np

    values = np.asarray(logits, np.float64)
    if not classes:
        return values.tolist()
    if "first" in question:
        values = values[question["first"]]
    if config.get("problem_type") == "multi_label_classification":
        shares = 1 / (1 + np.exp(-values))
    else:
        shares = np.exp(values - values.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
    return shares[..., [config["label2id"][name] for name in classes]].ravel().tolist()


ALL_OF_PEFT = frozenset({"methods", "tokens", "experts"})


def adalora(weights: AdapterWeights) -> str | None:
    refused = weights.settings.get("peft_type") == "ADALORA"
    return "refuses PEFT's AdaLoRA; export it as peft or portable, which write plain LoRA" if refused else None


def magnitudes(weights: AdapterWeights, does: str = "refuses DoRA") -> str | None:
    return does if weights.is_dora else None


def heads(weights: AdapterWeights, does: str, allowed: tuple[str, ...] = ()) -> str | None:
    """Modules that were trained whole."""
    names = [name for name in weights.heads if not any(f".{one}." in f".{name}" for one in allowed)]
    return f'{does} the fully trained weights, such as "{names[0]}"' if names else None


def _layers(weights: AdapterWeights, does: str, kind: Literal["embedding", "convolution"]) -> str | None:
    of_kind = (
        path
        for path, part in weights.factors.items()
        if part.rank and (part.embedding if kind == "embedding" else part.A.ndim != len(("rank", "in")))
    )
    path = next(of_kind, None)
    return None if path is None else f'{does} the adapter of the {kind} "{path}"'


embeddings = partial(_layers, kind="embedding")
convolutions = partial(_layers, kind="convolution")


def scored(rows: Any, question: dict[str, Any], stops: list[int]) -> dict[str, Any]:
    """Score a given answer of n tokens. `rows` are logits (n + 1, V) for each of its tokens and for the one after it.

    Returns the greedy answer, up to the first token that differs from the given answer or follows its end, and for each
    given token its log-probability (natural logarithm) and its logit.
    """
    import numpy as np

    given, values = question["answer_ids"], np.asarray(rows, dtype=np.float64)
    likeliest = values.argmax(-1).tolist()
    shared = next((at for at, token in enumerate(given) if likeliest[at] != token), len(given))
    is_done = shared == question["max_new_tokens"] or (shared == len(given) and given[-1:] and given[-1] in stops)
    own = values[np.arange(len(given)), given] if given else values[:0, 0]
    largest = values[: len(given)].max(-1) if given else own
    sums = np.exp(values[: len(given)] - largest[:, None]).sum(-1)
    return {
        "answer_ids": given[:shared] + ([] if is_done else likeliest[shared : shared + 1]),
        "log_probabilities": (own - largest - np.log(sums)).tolist(),
        "logits": own.tolist(),
    }
