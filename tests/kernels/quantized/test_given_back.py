"""Weights of a mapped file: the same numbers, hardly any of them resident, and nothing else given back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rankwise.kernels.quantized.formats import FORMATS
from rankwise.kernels.quantized.given_back import GivenBack, InFull, give_back_after_use, mapped_ranges
from rankwise.kernels.quantized.tensor import QuantizedTensor, unpacked

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of mappings")
LAYERS, WIDTH = 8, 1024
SIZE = LAYERS * WIDTH * WIDTH * 4


def resident_of_files() -> int:
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("RssFile"))
    return int(line.split()[1]) * 1024


def mapped_layers(file: Path) -> nn.Sequential:
    with safe_open(file, framework="pt") as opened:
        stored = [opened.get_tensor(str(number)) for number in range(LAYERS)]
    layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False, device="meta") for _ in stored))
    for layer, value in zip(layers, stored, strict=True):
        weight = QuantizedTensor(InFull(), [value], (WIDTH, WIDTH), torch.float32)
        layer.weight = nn.Parameter(weight, requires_grad=False)
    return layers


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = torch.Generator().manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    weights = {str(number): torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5 for number in range(LAYERS)}
    save_file(weights, path)
    return path


def forward_and_back(layers: nn.Module) -> tuple[Tensor, Tensor]:
    x = torch.ones(3, WIDTH, requires_grad=True)
    y = layers(x)
    y.sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


def test_weights_that_are_given_back_are_hardly_resident_and_compute_the_same(file: Path) -> None:
    before = resident_of_files()
    plain = mapped_layers(file)
    expected = forward_and_back(plain)
    assert resident_of_files() - before > 0.9 * SIZE, "else this measures nothing"
    del plain
    layers = mapped_layers(file)
    assert give_back_after_use(layers) == SIZE
    before = resident_of_files()
    for _ in range(2):
        assert all(map(torch.equal, forward_and_back(layers), expected))
        assert resident_of_files() - before < SIZE / LAYERS


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_no_page_of_a_file_is_left_alone(name: str, file: Path) -> None:
    weight = torch.randn(48, 192, generator=torch.Generator().manual_seed(0))
    tensor = QuantizedTensor(FORMATS[name], FORMATS[name].pack(weight), (48, 192), torch.float32)
    layer = nn.Linear(192, 48, device="meta")
    layer.weight = nn.Parameter(tensor, requires_grad=False)
    expected = unpacked(tensor)
    assert give_back_after_use(layer) == 0
    assert torch.equal(unpacked(layer.weight), expected)
    forced = GivenBack(FORMATS[name], mapped_ranges(), ())
    for _ in range(2):
        matrix, factor = forced.unpack(tensor.parts, (48, 192), torch.float32)
        assert torch.equal(matrix if factor is None else matrix * factor[:, None], expected)


def test_parts_that_were_copied_elsewhere_keep_their_numbers(file: Path) -> None:
    layers = mapped_layers(file)
    give_back_after_use(layers)
    first: QuantizedTensor = layers[0].weight  # pyright: ignore[reportAssignmentType]
    copied = first.like(parts=[part.clone() for part in first.parts])
    expected = copied.parts[0].clone()
    for _ in range(2):
        assert torch.equal(unpacked(copied), expected)
    index = torch.tensor([3, 0])
    assert torch.equal(first.format.rows(first.parts, (WIDTH, WIDTH), torch.float32, index), expected[index])


def test_ranges_hold_what_is_inside_them(file: Path) -> None:
    layers = mapped_layers(file)
    first: QuantizedTensor = layers[0].weight  # pyright: ignore[reportAssignmentType]
    part = first.parts[0]
    ranges = mapped_ranges()
    assert ranges.has(part.data_ptr(), part.nbytes) and not ranges.has(part.data_ptr(), 1 << 40)
    assert not ranges.has(torch.ones(5).data_ptr(), 20) and not ranges.has(0, 1)
