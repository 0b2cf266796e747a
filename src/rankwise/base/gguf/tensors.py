"""Check from the header of a GGUF file that its tensors fit the model that its settings describe.

transformers fills missing tensors with random numbers, and reads any bytes at an offset as numbers. So each tensor must
lie within the file and overlap no other. For known families, it must also have the model's shape, and none may be
missing or left over. For other families, the loading report shows missing tensors afterwards (conversion.py).
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
"""Largest number of tensors named in a message, and of problems that it lists."""

Shape = tuple[int, ...]


def check_tensors(file: Path) -> list[str]:
    """Refuse a file with all its problems; return the names of tensors that are ignored because settings determine
    them."""
    header = read_gguf_header(file)
    problems = [*_blocks(header), *_stored(header)]
    if not problems and header.settings.get("general.architecture") in FAMILIES:
        problems = _against(header, expected_tensors(header, file))
    if problems:
        raise ModelError("\n  ".join([f"{file} cannot be used; download or make the file again:", *listed(problems)]))
    return [name for name in header.tensors if name.startswith(NOT_OF_THE_MODEL)]


def check_stored(file: Path, header: GgufHeader) -> None:
    """Refuse a file whose tensors overlap or lie outside it."""
    if problems := _stored(header):
        raise ModelError("\n  ".join([f"{file} cannot be read; download or make the file again:", *listed(problems)]))


def listed(problems: list[str]) -> list[str]:
    """The first problems, and how many there are besides."""
    left = len(problems) - LISTED
    return problems if left <= 1 else [*problems[:LISTED], f"{left:,} tensors more have such problems."]


def _blocks(header: GgufHeader) -> list[str]:
    """Refuse more blocks than tensors: every block has tensors, and building that many blocks could take for ever."""
    key = f"{header.settings.get('general.architecture')}.block_count"
    blocks = header.settings.get(key)
    if isinstance(blocks, int) and blocks > len(header.tensors):
        return [f'setting "{key}" is {blocks:,}, but the file has {len(header.tensors):,} tensors.']
    return []


def _stored(header: GgufHeader) -> list[str]:
    """List problems with the positions of tensors in the file."""
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
    """List overlaps of tensors, which are sorted by their start."""
    problems, reached, last = [], 0, ""
    for begin, end, name in lying:
        if begin < reached:
            problems.append(f"tensors {shown(last)} and {shown(name)} overlap from byte {begin:,} on.")
        if end > reached:
            reached, last = end, name
    return problems


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
