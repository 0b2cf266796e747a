"""The formats that a base model in full precision can be stored in.

Whole numbers of eight bits with one scale for each row: W (O, I) = s_o Q, s_o = max_i |W_oi| / 127.

In a product the scale is a factor of the outputs, y = s (x Q^T), so Q is only copied to the number format of x; each
whole number up to 127 is exact in bfloat16.

Products in int8: the inputs are rounded to whole numbers too, with a scale t_n for each row of x.

    x ~ t X,  t = max |x| / 127,   y = t s (X Q^T)       X Q^T is exact in 32 bits
    dx = g W = (g s) Q ~ u (G Q)                         G and u of the rows of g s

So one copy of Q serves both directions. Processors multiply numbers of eight bits twice as fast as bfloat16. What
stands around a product (finding scales, rounding, scaling the sums) are passes over memory. C++ makes one of each; it
is compiled once and stored in the cache. The functions named `plain` are the reference for tests, and compute where
there is no compiler. oneDNN's sums are exact only on processors with AVX512-VNNI or AMX: AVX2 cuts them off.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rankwise.kernels.quantized.given_back import GivenBack, give_parts_back, mapped_ranges
from rankwise.kernels.quantized.nf4 import NF4
from rankwise.kernels.quantized.tensor import Format, Multiplying, QuantizedTensor, in_full
from rankwise.kernels.regions import NUMBERS, address, compiled_library
from rankwise.kernels.row_pieces import row_pieces

LARGEST = 127
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Int8:
    """Parts: numbers (O, I) in int8, scales (O,) in float32."""

    name: str = "int8"
    part_names: tuple[str, ...] = ("numbers", "scales")

    def takes(self, shape: tuple[int, int]) -> bool:
        return True

    def pack(self, weight: Tensor) -> tuple[Tensor, ...]:
        """In pieces of whole rows, so that little more than the result is in memory."""
        rows, columns = weight.shape
        numbers = torch.empty(rows, columns, dtype=torch.int8, device=weight.device)
        scales = torch.empty(rows, device=weight.device)
        for first, last in row_pieces(rows, columns):
            exact = weight[first:last].to(torch.float32)
            scales[first:last] = exact.abs().amax(1) / LARGEST
            numbers[first:last] = (exact / scales[first:last, None].clamp_min(TINY)).round_()
        return numbers, scales

    def unpack(self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        numbers, scales = parts
        return numbers.to(dtype), scales

    def rows(self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype, index: Tensor) -> Tensor:
        numbers, scales = parts
        return (numbers[index].to(torch.float32) * scales[index, None]).to(dtype)


SOURCE = (
    NUMBERS
    + r"""
template <class T>
static void quantize(const T* x, const float* factors, int8_t* numbers, float* scales, int64_t rows, int64_t columns,
                     int64_t threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < rows; row++) {
    const T* values = x + row * columns;
    int8_t* out = numbers + row * columns;
    uint32_t most = 0;  // the bits of a magnitude are in its order, and those of NaN are above all
    for (int64_t i = 0; i < columns; i++) {
      uint32_t bits = same_bits<uint32_t>(factors ? exact(values[i]) * factors[i] : exact(values[i])) & 0x7fffffff;
      most = bits > most ? bits : most;
    }
    float largest = same_bits<float>(most), per = most ? 127.0f / largest : 0.0f;
    scales[row] = largest / 127.0f;
    for (int64_t i = 0; i < columns; i++) {
      float value = factors ? exact(values[i]) * factors[i] : exact(values[i]);
      out[i] = (int8_t)(int32_t)std::nearbyint(value * per);
    }
  }
}

template <class T>
static void dequantize(T* y, const int32_t* sums, const float* scales, const float* factors, const T* bias,
                       int64_t adds, int64_t rows, int64_t columns, int64_t threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < rows; row++) {
    T* out = y + row * columns;
    const int32_t* sum = sums + row * columns;
    float scale = scales[row];
    for (int64_t i = 0; i < columns; i++) {
      float value = (float)sum[i] * scale;
      if (factors) value *= factors[i];
      if (bias) value += exact(bias[i]);
      if (adds) value += exact(out[i]);
      store(value, out + i);
    }
  }
}

#define NAMED(T, name)                                                                                             \
  extern "C" void quantize_##name(const T* x, const float* factors, int8_t* numbers, float* scales, int64_t rows,  \
                                  int64_t columns, int64_t threads) {                                              \
    quantize(x, factors, numbers, scales, rows, columns, threads);                                                 \
  }                                                                                                                \
  extern "C" void dequantize_##name(T* y, const int32_t* sums, const float* scales, const float* factors,          \
                                    const T* bias, int64_t adds, int64_t rows, int64_t columns, int64_t threads) { \
    dequantize(y, sums, scales, factors, bias, adds, rows, columns, threads);                                      \
  }
NAMED(float, float32)
NAMED(uint16_t, bfloat16)
extern "C" double error() {  // of two rounded rows
  int8_t numbers[200];
  float x[200], scales[2], sum = 0;
  for (int i = 0; i < 200; i++) x[i] = i * 5 % 11 - 5;
  quantize_float32(x, nullptr, numbers, scales, 2, 100, 2);
  for (int i = 0; i < 200; i++) sum += numbers[i] * scales[i / 100] * (i % 7);
  return std::abs(sum - 3.97638);
}
"""
)
VECTORS = ("-ftree-loop-vectorize", "-fno-math-errno")
"""torch's flags leave vectors to what it writes itself."""
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def quantize_rows(x: Tensor, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Whole numbers (N, I) in int8 and the scale of each row (N,) in float32 of x (N, I), times a factor of each
    column."""
    library = _library()
    if library is None or x.dtype not in NAMES or x.device.type != "cpu":
        return plain_quantize_rows(x, factors)
    x = x.contiguous()
    numbers, scales = x.new_empty(x.shape, dtype=torch.int8), x.new_empty(len(x), dtype=torch.float32)
    function = getattr(library, f"quantize_{NAMES[x.dtype]}")
    function(*map(address, (x, factors, numbers, scales)), *map(ctypes.c_int64, (*x.shape, torch.get_num_threads())))
    return numbers, scales


def plain_quantize_rows(x: Tensor, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Compute the same by torch alone, as the reference for tests."""
    exact = x.to(torch.float32)
    exact = exact if factors is None else exact * factors
    most = exact.abs().amax(1)
    per = torch.where(most == 0, 0.0, torch.full_like(most, LARGEST) / most)  # a number over a tensor rounds twice
    return (exact * per[:, None]).round_().nan_to_num_().to(torch.int8), most / LARGEST


def dequantize_sums(
    sums: Tensor, scales: Tensor, factors: Tensor | None, bias: Tensor | None, into: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Sums (N, O) in int32 times the scale of each row (N,) and the factor of each column (O,), with a bias (O,). It is
    added to `into`, in place, and rounded once."""
    library = _library()
    odd = [one for one in (bias, into) if one is not None and not (one.is_contiguous() and one.dtype == dtype)]
    if library is None or dtype not in NAMES or sums.device.type != "cpu" or odd:
        return plain_dequantize_sums(sums, scales, factors, bias, into, dtype)
    y = sums.new_empty(sums.shape, dtype=dtype) if into is None else into
    function = getattr(library, f"dequantize_{NAMES[dtype]}")
    numbers = (into is not None, *sums.shape, torch.get_num_threads())
    function(*map(address, (y, sums, scales, factors, bias)), *map(ctypes.c_int64, numbers))
    return y


def plain_dequantize_sums(
    sums: Tensor, scales: Tensor, factors: Tensor | None, bias: Tensor | None, into: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Compute the same by torch alone, as the reference for tests."""
    exact = sums.to(torch.float32) * scales[:, None]
    exact = exact if factors is None else exact * factors
    exact = exact if bias is None else exact + bias.to(torch.float32)
    return exact.to(dtype) if into is None else into.copy_(exact + into.to(torch.float32))


def _library() -> Any:
    return compiled_library(SOURCE, VECTORS)


def is_compiled() -> bool:
    return _library() is not None


@dataclass(frozen=True)
class QuantizedRows:
    """Rows x (N, I) in int8, but for their outlier columns: one number far above the others of its row would leave few
    levels for them."""

    numbers: Tensor
    scales: Tensor
    outliers: tuple[int, ...]
    columns: Tensor

    @staticmethod
    def of(x: Tensor, outliers: tuple[int, ...]) -> QuantizedRows:
        if not outliers:
            return QuantizedRows(*quantize_rows(x), outliers, x[:, :0])
        index = torch.tensor(outliers, device=x.device)
        factors = x.new_ones(x.shape[1], dtype=torch.float32).index_fill_(0, index, 0.0)
        return QuantizedRows(*quantize_rows(x, factors), outliers, x[:, index])


class _LatestRows(threading.local):
    """The latest rows that were quantised, since several layers often read the same ones."""

    _latest: tuple[weakref.ref[Tensor], int, QuantizedRows] | None = None

    def of(self, x: Tensor, outliers: tuple[int, ...]) -> QuantizedRows:
        if x.is_inference():  # torch does not count its changes
            return QuantizedRows.of(x, outliers)
        if self._latest is not None:
            tensor, version, rows = self._latest
            if tensor() is x and version == x._version and rows.outliers == outliers:
                return rows
        rows = QuantizedRows.of(x, outliers)
        self._latest = weakref.ref(x), x._version, rows
        return rows


LATEST = _LatestRows()


@dataclass(frozen=True)
class Int8Products(Multiplying):
    """A format with products in int8, by numbers and scales that are its last two parts: those of Int8, or a copy in
    int8 after the parts of another. The columns `outliers` of inputs are multiplied by unpacked weights. Whatever else
    needs the matrix has it from `original`."""

    original: Format = Int8()
    outliers: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return self.original.name

    def unpack(
        self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        return self.original.unpack(self.original_parts(parts), shape, dtype)

    def rows(self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype, index: Tensor) -> Tensor:
        return self.original.rows(self.original_parts(parts), shape, dtype, index)

    def original_parts(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the parts that `original` is stored in."""
        return parts if isinstance(self.original, Int8) else parts[:-2]

    def product(
        self, x: Tensor, parts: Sequence[Tensor], transposed: bool, bias: Tensor | None, into: Tensor | None
    ) -> Tensor:
        numbers, factors = parts[-2:]
        if not transposed:
            quantized, scales = quantize_rows(x, factors)
            return dequantize_sums(torch.ops.aten._int_mm(quantized, numbers), scales, None, bias, into, x.dtype)
        rows = LATEST.of(x, self.outliers)
        if self.outliers:
            weights = (numbers[:, list(self.outliers)] * factors[:, None]).to(x.dtype).T
            into = rows.columns @ weights if into is None else into.addmm_(rows.columns, weights)
        sums = torch.ops.aten._int_mm(rows.numbers, numbers.T)
        return dequantize_sums(sums, rows.scales, factors, bias, into, x.dtype)


class PackingFormat(Format, Protocol):
    """A format that is also written."""

    @property
    def part_names(self) -> tuple[str, ...]: ...

    def takes(self, shape: tuple[int, int]) -> bool:
        """Whether a matrix of this shape can be stored so."""
        ...

    def pack(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The parts of a matrix (O, I), which may lie in a mapped file: it is read in pieces."""
        ...


FORMATS: dict[str, PackingFormat] = {"nf4": NF4(), "int8": Int8()}


def weights_for_int8(module: Any) -> dict[str, QuantizedTensor]:
    """Weights that products in int8 exist for, by the names of their layers in the model without adapters: not those of
    the output head, where small errors would change the order of tokens, and none that are given back to their file
    after each use."""
    weights: dict[str, QuantizedTensor] = {}
    head = module.get_output_embeddings()
    for path, part in module.named_modules():
        weight: Any = part.weight if type(part) is nn.Linear else None
        if isinstance(weight, QuantizedTensor) and not isinstance(weight.format, GivenBack):
            weights[path.removesuffix(".base_layer")] = weight
    return {path: weight for path, weight in weights.items() if module.get_submodule(path) is not head}


def use_int8_products(module: nn.Module, outliers: Mapping[str, tuple[int, ...]]) -> None:
    """Compute these layers with products in int8, given the outlier columns of each, and all others with unpacked
    weights."""
    for name, weight in weights_for_int8(module).items():
        multiply_in_int8(weight, outliers.get(name))


def multiply_in_int8(weight: QuantizedTensor, outliers: tuple[int, ...] | None) -> None:
    """Multiply by this weight in int8, or by its unpacked numbers where `outliers` is None. A weight in another format
    gets a copy in int8 beside its own parts. Of those, pages that lie in a mapped file are given back."""
    format = weight.format
    if outliers is None:
        if isinstance(format, Int8Products):
            weight.format, weight.parts = format.original, tuple(format.original_parts(weight.parts))
    elif isinstance(format, Int8Products | Int8):
        weight.format = Int8Products(format.original if isinstance(format, Int8Products) else format, outliers)
    else:
        own = weight.parts
        weight.parts = (*own, *Int8().pack(in_full(weight)))
        weight.format = Int8Products(format, outliers)
        give_parts_back(own, mapped_ranges())
