"""Check from the header of a GGUF file that its tensors fit the model that its settings describe.

transformers fills missing tensors with random numbers. So each tensor must lie within the file and overlap no other.
For known families, it must also have the model's shape, and none may be missing or left over. For other families, the
loading report shows missing tensors afterwards (conversion.py).
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from rankwise.base.config_check import checked_config
from rankwise.base.gguf.header import FAMILIES, NOT_OF_THE_MODEL, GgufHeader, config_of_gguf, read_gguf_header
from rankwise.config.base import shown
from rankwise.errors import ModelError, some

LISTED = 4
"""Largest number of tensors named in a message, and of problems that it lists."""

Shape = tuple[int, ...]


def check_tensors(file: Path) -> list[str]:
    """Refuse a file with all its problems; return the names of tensors that are ignored because settings determine
    them."""
    header = read_gguf_header(file)
    check_stored(file, header)
    if header.settings.get("general.architecture") in FAMILIES:
        refuse(file, _against(header, expected_tensors(header, file)))
    return [name for name in header.tensors if name.startswith(NOT_OF_THE_MODEL)]


def check_stored(file: Path, header: GgufHeader) -> None:
    """Refuse a file whose tensors overlap or lie outside it."""
    problems, lying = [], []
    for name, sizes in header.tensors.items():
        try:
            begin = header.begin + header.offsets[name]
            end = begin + _bytes_of(sizes, header.types[name])
        except ModelError as error:
            problems.append(f"tensor {shown(name)} {error}")
            continue
        lying.append((begin, end, name))
        if end > header.size:
            problems.append(f"tensor {shown(name)} ends at byte {end:,}, but the file ends at {header.size:,}.")
    for (_, end, name), (begin, _, other) in pairwise(sorted(lying)):
        if begin < end:
            problems.append(f"tensors {shown(name)} and {shown(other)} overlap from byte {begin:,} on.")
    refuse(file, problems)


def refuse(file: Path, problems: list[str]) -> None:
    """ModelError with the first problems, and how many there are besides, if there are any."""
    left = len(problems) - LISTED
    if left > 1:
        problems = [*problems[:LISTED], f"{left:,} tensors more have such problems."]
    if problems:
        raise ModelError("\n  ".join([f"{file} cannot be used; download or make the file again:", *problems]))


def _bytes_of(sizes: Shape, kind: int) -> int:
    """Compute the size of a tensor; quantised numbers are stored in blocks, and a row is a whole number of blocks."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise ModelError(f"is stored in an unknown format ({kind}).") from None
    if sizes[0] % numbers:
        raise ModelError(f"has rows of {sizes[0]:,} numbers, and its format stores {numbers} at a time.")
    return math.prod(sizes) // numbers * size


def _against(header: GgufHeader, expected: dict[str, Shape]) -> list[str]:
    """Compare the file's tensors with those of the model."""
    there = {name: sizes for name, sizes in header.tensors.items() if not name.startswith(NOT_OF_THE_MODEL)}
    problems = []
    for names, what in (
        (expected.keys() - there.keys(), "missing"),
        (there.keys() - expected.keys(), "not part of this model"),
    ):
        if names:
            verb = "tensors are" if len(names) > 1 else "tensor is"
            problems.append(f"{len(names):,} {verb} {what}: {some(map(shown, sorted(names)), LISTED)}.")
    for name in sorted(expected.keys() & there.keys()):
        shape = tuple(reversed(there[name]))
        if shape != expected[name]:
            problems.append(f'tensor "{name}" has the shape {shape}, but the model needs {expected[name]}.')
    return problems


def expected_tensors(header: GgufHeader, file: Path) -> dict[str, Shape]:
    """Return the shapes of the model that transformers would build, by GGUF names, without allocating memory."""
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
