"""Whether the tensors of a GGUF file are those of the model that its settings describe, from the header alone.

transformers fills a tensor that it does not find with random numbers and reads what lies at an offset whatever it is.
So each tensor has to lie within the file, apart from all others, and, of the families whose weights are known here, in
the shape that the model has; none may be missing and none left over. Of other families the loading report says
afterwards what was missing (gguf.py).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rankwise.config.base import shown
from rankwise.errors import ModelError, some
from rankwise.planning.config_check import checked_config
from rankwise.planning.gguf_config import FAMILIES, NOT_OF_THE_MODEL, config_of_gguf
from rankwise.planning.gguf_header import GgufHeader, read_gguf_header

LISTED = 4
"""Tensors that one message names."""

Shape = tuple[int, ...]


def check_tensors(file: Path) -> list[str]:
    """ModelError with all that is wrong. What is left over and computed from settings is returned by name."""
    header = read_gguf_header(file)
    problems = [*_blocks(header), *_stored(header)]
    if not problems and header.settings.get("general.architecture") in FAMILIES:
        problems = _against(header, expected_tensors(header, file))
    if problems:
        raise ModelError("\n  ".join([f"{file} cannot be converted; download or make the file again:", *problems]))
    return [name for name in header.tensors if name.startswith(NOT_OF_THE_MODEL)]


def _blocks(header: GgufHeader) -> list[str]:
    """Every block has tensors of its own, so more blocks than tensors are a mistake, and would be built without end."""
    key = f"{header.settings.get('general.architecture')}.block_count"
    blocks = header.settings.get(key)
    if isinstance(blocks, int) and blocks > len(header.tensors):
        return [f'setting "{key}" is {blocks:,}, but the file has {len(header.tensors):,} tensors.']
    return []


def _stored(header: GgufHeader) -> list[str]:
    """What is wrong with where the tensors lie."""
    problems, lying = [], []
    for name, sizes in header.tensors.items():
        try:
            bytes_there = _bytes_of(sizes, header.types[name])
        except ModelError as error:
            problems.append(f"tensor {shown(name)} {error}")
            continue
        begin = header.begin + header.offsets[name]
        lying.append((begin, begin + bytes_there, name))
        if begin + bytes_there > header.size:
            problems.append(
                f"tensor {shown(name)} ends at byte {begin + bytes_there:,}, but the file ends at {header.size:,}."
            )
    return problems + _overlaps(sorted(lying))


def _overlaps(lying: list[tuple[int, int, str]]) -> list[str]:
    """Of tensors in the order in which they begin."""
    problems, reached, last = [], 0, ""
    for begin, end, name in lying:
        if begin < reached:
            problems.append(f"tensors {shown(last)} and {shown(name)} overlap from byte {begin:,} on.")
        if end > reached:
            reached, last = end, name
    return problems


def _bytes_of(sizes: Shape, kind: int) -> int:
    """Quantised numbers are stored in blocks of so many, which a row is made of."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise ModelError(f"is stored in format {kind}, which is not known.") from None
    if sizes[0] % numbers:
        raise ModelError(f"has rows of {sizes[0]:,} numbers, and its format stores {numbers} at a time.")
    return math.prod(sizes) // numbers * size


def _against(header: GgufHeader, expected: dict[str, Shape]) -> list[str]:
    """What the file holds beside what the model is made of."""
    there = {name: sizes for name, sizes in header.tensors.items() if not name.startswith(NOT_OF_THE_MODEL)}
    problems = []
    if missing := sorted(expected.keys() - there.keys()):
        problems.append(f"{_tensors(missing)} missing: {some(missing, LISTED)}.")
    if over := sorted(there.keys() - expected.keys()):
        problems.append(f"{_tensors(over)} not part of this model: {some(map(shown, over), LISTED)}.")
    for name in sorted(expected.keys() & there.keys()):
        found = tuple(reversed(there[name]))
        if found != expected[name]:
            problems.append(f'tensor "{name}" has the shape {found}, but the model needs {expected[name]}.')
    return problems


def _tensors(names: list[str]) -> str:
    return f"{len(names):,} tensor{'s are' if len(names) > 1 else ' is'}"


def expected_tensors(header: GgufHeader, file: Path) -> dict[str, Shape]:
    """By GGUF's names: the shapes of the model that transformers would build, which takes no memory."""
    import torch
    from gguf import MODEL_ARCH, get_tensor_name_map
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.pytorch_utils import Conv1D

    config = config_of_gguf(header, file)
    checked_config(config, str(file))
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(CONFIG_MAPPING[config["model_type"]](**config))
    architecture = str(header.settings["general.architecture"])
    names = get_tensor_name_map(getattr(MODEL_ARCH, architecture.upper()), config["num_hidden_layers"])
    turned = {name for name, module in model.named_modules() if isinstance(module, Conv1D)}
    found: dict[str, Shape] = {}
    for path, parameter in model.named_parameters():
        stem, _, kind = path.rpartition(".")
        shape = tuple(parameter.shape)
        found[f"{names.get_name(stem)}.{kind}"] = shape[::-1] if stem in turned and kind == "weight" else shape
    return found
