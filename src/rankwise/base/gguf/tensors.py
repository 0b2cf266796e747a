"""Check from the header of a GGUF file that its tensors fit the model that its settings describe.

transformers fills missing tensors with random numbers. So each tensor must lie within the file and overlap no other.
For known families, it must also have the model's shape, and none may be missing or left over. For other families, the
loading report shows missing tensors afterwards (conversion.py).
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from rankwise.base.config_check import checked_config
from rankwise.base.gguf.header import (
    FAMILIES,
    NOT_OF_THE_MODEL,
    GgufHeader,
    config_of_gguf,
    read_gguf_header,
    tensor_names,
)
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
    for name in header.tensors:
        try:
            begin, end = header.span(name)
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


def _against(header: GgufHeader, expected: dict[str, Shape]) -> list[str]:
    """Compare the file's tensors with those of the model."""
    there = {name: header.shape(name) for name in header.tensors if not name.startswith(NOT_OF_THE_MODEL)}
    problems = []
    for names, what in (
        (expected.keys() - there.keys(), "missing"),
        (there.keys() - expected.keys(), "not part of this model"),
    ):
        if names:
            verb = "tensors are" if len(names) > 1 else "tensor is"
            problems.append(f"{len(names):,} {verb} {what}: {some(map(shown, sorted(names)), LISTED)}.")
    for name in sorted(expected.keys() & there.keys()):
        if there[name] != expected[name]:
            problems.append(f'tensor "{name}" has the shape {there[name]}, but the model needs {expected[name]}.')
    return problems


def without_weights(config: Any) -> Any:
    """The language model of a config, without memory for its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def expected_tensors(header: GgufHeader, file: Path) -> dict[str, Shape]:
    """Return the shapes of the model that transformers would build, by GGUF names, without allocating memory."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.pytorch_utils import Conv1D

    config = config_of_gguf(header, file)
    checked_config(config, str(file))
    model = without_weights(CONFIG_MAPPING[config["model_type"]](**config))
    names = tensor_names(str(header.settings["general.architecture"]), config["num_hidden_layers"])
    turned = {name for name, module in model.named_modules() if isinstance(module, Conv1D)}
    found: dict[str, Shape] = {}
    for path, parameter in model.named_parameters():
        stem, _, kind = path.rpartition(".")
        shape = tuple(parameter.shape)
        found[f"{names.get_name(stem)}.{kind}"] = shape[::-1] if stem in turned and kind == "weight" else shape
    return found
