"""Our numbers of GGUF's blocks equal those of the gguf package to the bit, for all bit patterns there can be."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from rankwise.kernels.quantized.gguf import AT_ONCE, FORMATS
from rankwise.kernels.quantized.tensor import QuantizedTensor

ROWS, COLUMNS = 2**19 // 2048 + 3, 2048
"""More than what is unpacked at once."""
KINDS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def random_rows(name: str) -> np.ndarray:
    """Any bytes, so scales may be infinite, no numbers, or below the smallest normal one."""
    size = COLUMNS // FORMATS[name].numbers * FORMATS[name].bytes
    return np.random.default_rng(0).integers(0, 256, (ROWS, size), dtype=np.uint8)


def values(rows: np.ndarray, name: str) -> torch.Tensor:
    with np.errstate(all="ignore"):
        return torch.from_numpy(np.array(gguf.dequantize(rows, gguf.GGMLQuantizationType[name]), np.float32))


def differing(ours: torch.Tensor, theirs: torch.Tensor) -> int:
    """Numbers whose bits differ; what is no number has to be none in both."""
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    bits = KINDS[ours.dtype]
    return int(((ours.contiguous().view(bits) != theirs.view(bits)) & ~(ours.isnan() & theirs.isnan())).sum())


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_every_number_is_the_packages_to_the_bit(name: str, dtype: torch.dtype) -> None:
    assert ROWS * COLUMNS > AT_ONCE
    rows = random_rows(name)
    theirs = values(rows, name).to(dtype)
    ours, factor = FORMATS[name].unpack([torch.from_numpy(rows)], (ROWS, COLUMNS), dtype)
    assert factor is None and differing(ours, theirs) == 0
    index = torch.tensor([5, 0, 5, ROWS - 1])
    assert differing(FORMATS[name].rows([torch.from_numpy(rows)], (ROWS, COLUMNS), dtype, index), theirs[index]) == 0


@pytest.mark.parametrize("name", FORMATS)
def test_a_view_of_a_longer_file_is_read_as_well(name: str) -> None:
    rows = random_rows(name)[:4]
    mapped = torch.cat([torch.zeros(32, dtype=torch.uint8), torch.from_numpy(rows).flatten()])
    view = mapped[32:].view(rows.shape)
    assert differing(FORMATS[name].unpack([view], (4, COLUMNS), torch.float32)[0], values(rows, name)) == 0


def test_a_row_is_looked_up_without_unpacking_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    form = FORMATS["Q4_1"]
    weight = QuantizedTensor(form, [torch.from_numpy(random_rows("Q4_1"))], (ROWS, COLUMNS), torch.float32)
    shapes: list[tuple[int, int]] = []
    unpack = type(form).unpack
    monkeypatch.setattr(type(form), "unpack", lambda self, *given: shapes.append(given[1]) or unpack(self, *given))
    looked_up = torch.nn.functional.embedding(torch.tensor([[3, 1]]), weight)
    assert looked_up.shape == (1, 2, COLUMNS) and shapes == [(2, COLUMNS)]


@pytest.mark.parametrize("name", FORMATS)
def test_sizes_of_blocks_are_the_packages(name: str) -> None:
    numbers, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    assert FORMATS[name].bytes * numbers == size * FORMATS[name].numbers
