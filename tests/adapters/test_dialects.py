"""Every tool's adapter means here what it means there: its change of weights, its logits, PEFT's after export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from kit.dialect_files import WRITERS, Written
from rankwise.adapters.base_layers import is_transposed
from rankwise.adapters.formats.dialects import detect, read_adapter
from rankwise.adapters.formats.peft import lay, rewrite
from rankwise.adapters.set import AdapterSet
from rankwise.adapters.targets import host_view

AGREE = 1e-5
"""Relative."""
IDS = torch.tensor([[5, 17, 80, 3, 44, 9, 61, 2]])


@pytest.fixture(params=[*WRITERS])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Written:
    return WRITERS[request.param](tmp_path)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.double()


def changed(written: Written) -> Tensor:
    """Logits of the model whose weights are changed by the tool's formula."""
    before = {}
    for path, delta in written.deltas.items():
        module = written.model.get_submodule(path)
        before[path] = module.weight
        turned = delta.T if is_transposed(module) else delta
        module.weight = nn.Parameter((module.weight.double() + turned).float(), requires_grad=False)
    result = logits(written.model)
    for path, weight in before.items():
        written.model.get_submodule(path).weight = weight
    return result


def far(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def laid(written: Written, strength: float = 1.0) -> Tensor:
    weights = read_adapter(written.path, host_view(written.model))
    weights = replace(weights, factors={path: replace(part, scale=part.scale * strength)
                                        for path, part in weights.factors.items()})  # fmt: skip
    adapters = lay(written.model, weights)
    result = logits(written.model)
    adapters.remove()
    return result


def test_each_change_is_that_of_the_tools_formula(written: Written) -> None:
    weights = read_adapter(written.path, host_view(written.model))
    assert weights.factors.keys() == written.deltas.keys()
    assert weights.is_dora or all(
        far(part.scale * part.B.double() @ part.A.double(), written.deltas[path]) <= AGREE
        for path, part in weights.factors.items()
    )
    assert list(weights.factors) == [path for path in host_view(written.model) if path in weights.factors]


def test_the_model_answers_as_with_the_tools_change(written: Written) -> None:
    base, expected = logits(written.model), changed(written)
    assert far(base, expected) > 1e-3
    assert far(laid(written), expected) <= AGREE
    assert torch.equal(logits(written.model), base)


def test_peft_answers_as_the_tool_after_conversion(written: Written, tmp_path: Path) -> None:
    weights = read_adapter(written.path, host_view(written.model))
    rewrite(weights, tmp_path / "peft", {})
    if weights.rank and not weights.is_dora:
        rewrite(weights.portable(), tmp_path / "portable", {})
    expected = changed(written)
    folders = [folder for name in ("peft", "portable") if (folder := tmp_path / name).is_dir()]
    assert folders
    for folder in folders:
        model = PeftModel.from_pretrained(written.model, folder)
        assert far(logits(model), expected) <= AGREE
        model.unload()
        ours = AdapterSet(written.model)
        lay(written.model, read_adapter(folder, host_view(written.model)), into=ours)
        assert far(logits(written.model), expected) <= AGREE
        ours.remove()


def test_the_format_is_known_by_its_content(tmp_path: Path) -> None:
    for name, writer in WRITERS.items():
        (folder := tmp_path / name).mkdir()
        written = writer(folder)
        assert detect(written.path).name == name.partition("-")[0]
        assert detect(folder).name == name.partition("-")[0]
