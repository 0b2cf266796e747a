"""llama.cpp's LoRA files: GGUF with general.type "adapter".

    NAME.weight.lora_a (r, I)      NAME.weight.lora_b (O, r)      change of NAME:  alpha / r  *  B A,  r of each tensor
    token_embd.weight.lora_a (V, r): A transposed                 alpha 0:  the scale is 1, as llama.cpp computes it

Names are those of GGUF models, and transformers' follow from the gguf package's table for the architecture. The rows of
llama's query and key are stored in the order of the original checkpoints: within a head of size d, row i and row
i + d/2 are neighbours. That order is undone in B:  B (heads, d/2, 2, r) -> (heads, 2, d/2, r).
"""

from __future__ import annotations

import regex
from torch import Tensor

from rankwise.adapters.formats.imported import ImportedSource, Layers, Modules
from rankwise.adapters.weights import AdapterWeights, Factors
from rankwise.base.gguf.adapter import gguf_names, read_gguf_tensors
from rankwise.base.gguf.header import ADAPTER, TYPE, GgufHeader, read_gguf_header
from rankwise.errors import AdapterError, ModelError

PERMUTED = frozenset({"llama", "smollm3"})
ARCHITECTURES = PERMUTED | {"gemma", "gemma2", "gemma3", "phi3", "qwen2", "qwen3"}
"""Architectures whose layers are the same in GGUF and in transformers, except for the order of rows."""
KEY = regex.compile(r"(?P<path>.+)\.weight\.(?P<part>lora_[ab])")
TURNED = regex.compile(r"blk\.\d+\.attn_[qk]")
EMBEDDING, ALPHA, LORA_TYPE = "token_embd", "adapter.lora.alpha", "adapter.type"
SETTINGS = {ALPHA, LORA_TYPE, "adapter.lora.task_name", "adapter.lora.prompt_prefix"}
LORA_TYPES = {"lora"}
"""What llama.cpp calls them; other kinds of adapters have other names."""
HUB = "https://huggingface.co/"


def read(source: ImportedSource, modules: Modules | None) -> AdapterWeights:
    file, layers = source.tensors, Layers(source, base=base_of(source))
    try:
        header = read_gguf_header(file)
        architecture, alpha = _checked(header, layers)
        layers.refuse()
        parts = _grouped(read_gguf_tensors(file, header), layers)
    except ModelError as error:
        raise AdapterError(str(error)) from None
    if alpha == 0:
        layers.remarks.append(f"{file} says alpha 0 or none; it is read at scale 1, as llama.cpp reads it")
    paths = {} if modules is None else gguf_names(architecture, modules)
    for name, (A, B) in parts.items():
        if modules is not None and architecture in PERMUTED and TURNED.fullmatch(name):
            B = _turned_back(name, B, paths, modules, layers)
        layers.factors[paths.get(name, name)] = Factors(A, B, alpha / B.shape[1] if alpha else 1.0)
    return layers.over(modules)


def base_of(source: ImportedSource) -> str | None:
    """The hub's name of the base model, where the file gives its address."""
    try:
        url = read_gguf_header(source.tensors).settings.get("general.base_model.0.repo_url")
    except ModelError as error:
        raise AdapterError(str(error)) from None
    return url.removeprefix(HUB) if isinstance(url, str) and url.startswith(HUB) else None


def _checked(header: GgufHeader, layers: Layers) -> tuple[str, float]:
    """The architecture and alpha; what cannot be read is a problem."""
    settings = header.settings
    architecture, alpha = settings.get("general.architecture"), settings.get(ALPHA, 0.0)
    if settings.get(TYPE) != ADAPTER or settings.get(LORA_TYPE) not in LORA_TYPES:
        layers.problems.append(
            f"it is no LoRA adapter ({TYPE} {settings.get(TYPE)}, {LORA_TYPE} {settings.get(LORA_TYPE)})"
        )
    if architecture not in ARCHITECTURES:
        layers.problems.append(
            f'adapters of the architecture "{architecture}" are not read; known are {", ".join(sorted(ARCHITECTURES))}'
        )
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 <= alpha <= 1e8:
        layers.problems.append(f"{ALPHA} is {alpha}, and a number from 0 on is needed")
        alpha = 0.0
    unknown = [key for key in settings if key.startswith("adapter.") and key not in SETTINGS]
    layers.problems += [f"it sets {key}, which is not supported" for key in unknown]
    return str(architecture), float(alpha)


def _grouped(tensors: dict[str, Tensor], layers: Layers) -> dict[str, tuple[Tensor, Tensor]]:
    """A (r, I) and B (O, r) of each layer, by its GGUF name."""
    pairs = layers.grouped(tensors, KEY, ("lora_a", "lora_b")).items()
    turned = {name: (a.T if name == EMBEDDING else a, b) for name, (a, b) in pairs}
    return {
        name: (A.contiguous(), B) for name, (A, B) in turned.items()
        if layers.fit(f"{name}.weight", A, B, A.shape[0] if A.ndim else 0)
    }  # fmt: skip


def _turned_back(name: str, B: Tensor, paths: dict[str, str], modules: Modules, layers: Layers) -> Tensor:
    """B with the rows of each head in transformers' order."""
    path = paths.get(name)
    if path is None:
        return B  # refused as a layer that the model does not have
    size = getattr(modules[path.rpartition(".")[0]], "head_dim", 0)
    if not size or size % 2 or B.shape[0] % size:
        layers.problems.append(f'"{name}.weight" has {B.shape[0]:,} rows, which are no heads of size {size}')
        return B
    return B.view(-1, size // 2, 2, B.shape[1]).transpose(1, 2).reshape(B.shape)
