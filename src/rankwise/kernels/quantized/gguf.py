"""Weights as they lie in a GGUF file: rows of whole blocks, unpacked for a product or row by row for an embedding.

The only part of such a weight is a tensor of bytes (O, bytes of a row), which may be a view of the mapped file: then
nothing of it is in memory that the system could not drop and read again.

The numbers in GGUF's blocks: codes of a few bits, and what they are multiplied by.

    w = d (q - o)        Q4_0, Q5_0, Q6_K, Q8_0        w = d q + m        Q4_1, Q5_1, Q4_K, Q5_K

d and m belong to 16 or 32 numbers. In a K type they are products of whole numbers and a float16 for 256 numbers. Four
bits of two numbers lie in a byte, further bits in bytes of their own. All is computed in float32, in the order of the
gguf package, so that each number equals its value to the bit; the number format of a product is rounded to once.

Each region runs over all numbers and is given its factors ready-made, since the compiler would compute them once more
for each number. Numbers with one factor lie along the last dimension: the compiler makes no vectors where a factor
changes within it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rankwise.kernels.regions import CompiledRegion


def halves(blocks: Tensor, at: int, count: int) -> Tensor:
    """`count` float16 that begin at byte `at` of each block (N, bytes), in float32 (N, count)."""
    word = torch.int32 if count == 2 else torch.int16  # a strided copy of whole words is many times faster
    return blocks.view(word)[:, at // (2 * count)].contiguous().view(torch.float16).view(-1, count).to(torch.float32)


def _pieces(codes: Tensor, count: int) -> Tensor:
    """Bytes (..., L) to their `count` pieces, the lowest bits first (..., count, L)."""
    bits = 8 // count
    if torch.compiler.is_compiling():  # shifts by a tensor become vectors there, and concatenations do not
        steps = torch.arange(count, dtype=torch.int32, device=codes.device) * bits
        return (codes.to(torch.int32)[..., None, :] >> steps[:, None]) & (2**bits - 1)
    return torch.stack([(codes >> (bits * piece)) & (2**bits - 1) for piece in range(count)], -2)


def fifth_bits(flags: Tensor) -> Tensor:
    """Sixteen times each bit of bytes (N, 4), the lowest first, in bytes (N, 32): looked up eight at a time."""
    eights = torch.index_select(_eights(flags.device), 0, flags.to(torch.int32).flatten())
    return eights.view(torch.uint8).view(-1, 32)


@cache
def _eights(device: torch.device) -> Tensor:
    """The eight bytes that stand for the bits of each byte, as one number of 64 bits (256,)."""
    places = torch.arange(8, device=device)
    bits = (torch.arange(256, device=device)[:, None] >> places) & 1
    return (16 * bits).to(torch.uint8).view(torch.int64).flatten()


@CompiledRegion
def sixteen_bits(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """float16 (N,)."""
    return numbers.to(torch.float32).to(dtype)


@CompiledRegion
def eight_bits(codes: Tensor, d: Tensor, dtype: torch.dtype) -> Tensor:
    """int8 (N, 32) and (N, 1)."""
    return codes.to(torch.float32).mul_(d).to(dtype)


@CompiledRegion
def four_bits(codes: Tensor, d: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes (N, 16) and (N, 1): d (q - 8)."""
    return _pieces(codes, 2).to(torch.float32).sub_(8).mul_(d[..., None]).to(dtype)


@CompiledRegion
def four_bits_above(codes: Tensor, d: Tensor, m: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes (N, 16) and (N, 1): d q + m."""
    return _pieces(codes, 2).to(torch.float32).mul_(d[..., None]).add_(m[..., None]).to(dtype)


@CompiledRegion
def five_bits(codes: Tensor, fifth: Tensor, d: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes (N, 16), sixteen times the fifth bits (N, 32), and (N, 1): d (q - 16)."""
    numbers = _pieces(codes, 2) | fifth.view(-1, 2, 16)
    return numbers.to(torch.float32).sub_(16).mul_(d[..., None]).to(dtype)


@CompiledRegion
def five_bits_above(codes: Tensor, fifth: Tensor, d: Tensor, m: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes (N, 16), sixteen times the fifth bits (N, 32), and (N, 1): d q + m."""
    numbers = _pieces(codes, 2) | fifth.view(-1, 2, 16)
    return numbers.to(torch.float32).mul_(d[..., None]).add_(m[..., None]).to(dtype)


@CompiledRegion
def four_bits_of_256(codes: Tensor, d: Tensor, m: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes (N, 4, 32) and factors of 32 numbers (N, 8, 1): d q + m."""
    return _pieces(codes, 2).to(torch.float32).mul_(d.view(-1, 4, 2, 1)).add_(m.view(-1, 4, 2, 1)).to(dtype)


@CompiledRegion
def five_bits_of_256(codes: Tensor, fifth: Tensor, d: Tensor, m: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes (N, 4, 32), bit s of bytes (N, 32) the fifth one of each 32 numbers s, and (N, 8, 1): d q + m."""
    numbers = _pieces(codes, 2) | (_pieces(fifth, 8) << 4).view(-1, 4, 2, 32)
    return numbers.to(torch.float32).mul_(d.view(-1, 4, 2, 1)).add_(m.view(-1, 4, 2, 1)).to(dtype)


@CompiledRegion
def six_bits_of_256(codes: Tensor, upper: Tensor, d: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes (N, 2, 64) of four bits and (N, 2, 32) of two bits, factors of 16 numbers (N, 16, 1): d (q - 32)."""
    sixteens = (-1, 2, 2, 2, 2, 16)
    numbers = _pieces(codes, 2).view(sixteens) | (_pieces(upper, 4) << 4).view(sixteens)
    return numbers.to(torch.float32).sub_(32).mul_(d.view(-1, 2, 2, 2, 2, 1)).to(dtype)


def six_bit_factors(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """d and m of each 32 numbers of a block of Q4_K or Q5_K (N, 8, 1): eight pairs of whole numbers of six bits, in
    twelve bytes after two halves. The last four pairs have their upper two bits in the bytes of the first four."""
    first, second, third = blocks[:, 4:16].reshape(-1, 3, 4).unbind(1)
    d = torch.cat([first & 63, (third & 15) | ((first >> 2) & 48)], 1).to(torch.float32)
    m = torch.cat([second & 63, (third >> 4) | ((second >> 2) & 48)], 1).to(torch.float32)
    both = halves(blocks, 0, 2)
    return (d * both[:, :1])[:, :, None], (m * both[:, 1:]).neg_()[:, :, None]


AT_ONCE = 2**19
"""Numbers that are unpacked together where nothing is compiled, so that what lies between fits a core's cache."""
Factors = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class GgufBlocks:
    """`numbers` of a row in `bytes`. `split` cuts blocks (N, bytes) into what `region` is given before the dtype."""

    name: str
    numbers: int
    bytes: int
    split: Factors
    region: CompiledRegion[..., Any]
    part_names: tuple[str, ...] = ("blocks",)

    def unpack(self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, None]:
        blocks = parts[0].reshape(-1, self.bytes)
        if self.region.compiled is not None and len(blocks) > 1:
            return self.region(*self.split(blocks), dtype).view(shape), None
        unpacked = torch.empty(len(blocks), self.numbers, dtype=dtype, device=blocks.device)
        count = AT_ONCE // self.numbers
        for begin in range(0, len(blocks), count):
            given = [part.contiguous() for part in self.split(blocks[begin : begin + count])]
            numbers = self.region.plain(*given, torch.float32)
            unpacked[begin : begin + count] = numbers.view(-1, self.numbers)
        return unpacked.view(shape), None

    def rows(self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype, index: Tensor) -> Tensor:
        return self.unpack([parts[0][index]], (len(index), shape[1]), dtype)[0]


@dataclass(frozen=True)
class GgufBfloat16:
    """In products of bfloat16 the file itself is read."""

    name: str = "BF16"
    numbers: int = 1
    bytes: int = 2
    part_names: tuple[str, ...] = ("blocks",)

    def unpack(self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, None]:
        return parts[0].view(torch.bfloat16).to(dtype).view(shape), None

    def rows(self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype, index: Tensor) -> Tensor:
        return parts[0][index].view(torch.bfloat16).to(dtype)


def _f16(blocks: Tensor) -> tuple[Tensor, ...]:
    return (blocks.view(torch.float16).flatten(),)


def _q4_0(blocks: Tensor) -> tuple[Tensor, ...]:
    return blocks[:, 2:], halves(blocks, 0, 1)


def _q4_1(blocks: Tensor) -> tuple[Tensor, ...]:
    return blocks[:, 4:], *halves(blocks, 0, 2).split(1, 1)


def _q5_0(blocks: Tensor) -> tuple[Tensor, ...]:
    return blocks[:, 6:], fifth_bits(blocks[:, 2:6]), halves(blocks, 0, 1)


def _q5_1(blocks: Tensor) -> tuple[Tensor, ...]:
    return blocks[:, 8:], fifth_bits(blocks[:, 4:8]), *halves(blocks, 0, 2).split(1, 1)


def _q8_0(blocks: Tensor) -> tuple[Tensor, ...]:
    return blocks[:, 2:].view(torch.int8), halves(blocks, 0, 1)


def _q4_k(blocks: Tensor) -> tuple[Tensor, ...]:
    return blocks[:, 16:].view(-1, 4, 32), *six_bit_factors(blocks)


def _q5_k(blocks: Tensor) -> tuple[Tensor, ...]:
    return blocks[:, 48:].view(-1, 4, 32), blocks[:, 16:48], *six_bit_factors(blocks)


def _q6_k(blocks: Tensor) -> tuple[Tensor, ...]:
    d = blocks[:, 192:208].view(torch.int8).to(torch.float32) * halves(blocks, 208, 1)
    return blocks[:, :128].view(-1, 2, 64), blocks[:, 128:192].view(-1, 2, 32), d[:, :, None]


GgufFormat = GgufBlocks | GgufBfloat16
FORMATS: Mapping[str, GgufFormat] = {
    one.name: one
    for one in (
        GgufBfloat16(),
        GgufBlocks("F16", 1, 2, _f16, sixteen_bits),
        GgufBlocks("Q4_0", 32, 18, _q4_0, four_bits),
        GgufBlocks("Q4_1", 32, 20, _q4_1, four_bits_above),
        GgufBlocks("Q5_0", 32, 22, _q5_0, five_bits),
        GgufBlocks("Q5_1", 32, 24, _q5_1, five_bits_above),
        GgufBlocks("Q8_0", 32, 34, _q8_0, eight_bits),
        GgufBlocks("Q4_K", 256, 144, _q4_k, four_bits_of_256),
        GgufBlocks("Q5_K", 256, 176, _q5_k, five_bits_of_256),
        GgufBlocks("Q6_K", 256, 210, _q6_k, six_bits_of_256),
    )
}
"""By the name that the gguf package has for the type."""
READ_BLOCKS = r"""
// Blocks of GGUF, sixteen numbers at a time; where a processor multiplies bytes, 64 codes q with d and m of each four
struct Q8_0 {
  static const int64_t numbers = 32, bytes = 34;
  template <class To> static inline void unpack(const uint8_t* block, To to) {
    float d = half(block);
    to(0, d * read((const int8_t*)block + 2));
    to(W, d * read((const int8_t*)block + 2 + W));
  }
#ifdef MULTIPLIES_BYTES
  template <class To> static inline void codes(const uint8_t* block, int64_t n, To to) {
    for (int64_t i = 0; i < n; i += 64, block += 2 * bytes) {
      fetch_ahead(block);
      Codes64 code = two_of(loaded<Bytes32>(block + 2), loaded<Bytes32>(block + bytes + 2)) ^ 0x80;
      to(i, code, halves(block, block + bytes), -128.0f);
    }
  }
#endif
};
// 32 numbers of four bits, and of a fifth, above which there is a second factor or a constant
template <bool FIFTH, int CENTRE> struct Low {
  static const int64_t factors = CENTRE ? 2 : 4, numbers = 32, bytes = factors + 16 + 4 * FIFTH;
  template <class To> static inline void unpack(const uint8_t* block, To to) {
    static const Words lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    float d = half(block), m = CENTRE ? -CENTRE * d : half(block + 2);
    Words codes = read_codes(block + bytes - 16), low = codes & 15, high = codes >> 4;
    if (FIFTH) {
      uint32_t fifth = loaded<uint32_t>(block + factors);
      low |= (fifth >> lanes & 1) << 4;
      high |= (fifth >> (lanes + 16) & 1) << 4;
    }
    to(0, TO(Floats, (Integers)low) * d + m);
    to(W, TO(Floats, (Integers)high) * d + m);
  }
#ifdef MULTIPLIES_BYTES
  template <class To> static inline void codes(const uint8_t* block, int64_t n, To to) {
    for (int64_t i = 0; i < n; i += 64, block += 2 * bytes) {
      const uint8_t* next = block + bytes;
      fetch_ahead(block);
      __m512i both = _mm512_broadcast_i32x4(loaded<__m128i>(block + bytes - 16));
      both = _mm512_mask_broadcast_i32x4(both, 0xff00, loaded<__m128i>(next + bytes - 16));
      Codes64 code = (Codes64)_mm512_srlv_epi16(both, quarters(0, 4, 0, 4)) & 15;
      if (FIFTH) {
        uint64_t fifth = loaded<uint32_t>(block + factors) | (uint64_t)loaded<uint32_t>(next + factors) << 32;
        code = (Codes64)_mm512_mask_add_epi8((__m512i)code, fifth, (__m512i)code, _mm512_set1_epi8(16));
      }
      if constexpr (CENTRE) to(i, code, halves(block, next), (float)-CENTRE);
      else to(i, code, halves(block, next), halves(block + 2, next + 2));
    }
  }
#endif
};
template <int64_t FIFTH> struct K {  // bytes of fifth bits before the codes
  static const int64_t numbers = 256, bytes = 144 + FIFTH;
  template <class To> static inline void unpack(const uint8_t* block, To to) {
    const uint8_t *six = block + 4, *fifth = block + 16, *codes = block + 16 + FIFTH;
    float first = half(block), second = half(block + 2);
#pragma GCC unroll 8
    for (int s = 0; s < 8; s++) {
      int factor = s < 4 ? six[s] & 63 : (six[s + 4] & 15) | (six[s - 4] >> 6) << 4;
      int least = s < 4 ? six[s + 4] & 63 : (six[s + 4] >> 4) | (six[s] >> 6) << 4;
      float d = first * factor, m = -second * least;
#pragma GCC unroll 2
      for (int i = 0; i < 32; i += W) {
        Words code = read_codes(codes + s / 2 * 32 + i) >> s % 2 * 4 & 15;
        if (FIFTH) code |= (read_codes(fifth + i) >> s & 1) << 4;
        to(32 * s + i, TO(Floats, (Integers)code) * d + m);
      }
    }
  }
#ifdef MULTIPLIES_BYTES
  template <class To> static inline void codes(const uint8_t* block, int64_t n, To to) {
    const Floats signs = {1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1};
    for (int64_t i = 0; i < n; i += 256, block += bytes) {
      uint32_t first = loaded<uint32_t>(block + 4), second = loaded<uint32_t>(block + 8);
      uint32_t third = loaded<uint32_t>(block + 12), low = 0x0f0f0f0f, six = 0x3f3f3f3f, two = 0x30303030;
      uint32_t both[4] = {first & six, (third & low) | (first >> 2 & two), second & six,
                          (third >> 4 & low) | (second >> 2 & two)};
      Floats factors = TO(Floats, (Integers)read_codes((const uint8_t*)both));
      factors *= halves(block, block + 2) * signs;  // eight d, then eight m
#pragma GCC unroll 4
      for (int part = 0; part < 4; part++) {
        __m512i pair = _mm512_broadcast_i64x4(loaded<__m256i>(block + 16 + FIFTH + 32 * part));
        fetch_ahead(block + 36 * part);
        Codes64 code = (Codes64)_mm512_srlv_epi16(pair, quarters(0, 0, 4, 4)) & 15;
        if (FIFTH) {
          __m512i fifth = _mm512_broadcast_i64x4(loaded<__m256i>(block + 16));
          fifth = _mm512_srlv_epi16(fifth, quarters(2 * part, 2 * part, 2 * part + 1, 2 * part + 1));
          code |= ((Codes64)fifth & 1) << 4;
        }
        int at = 2 * part;
        to(i + 64 * part, code, chosen(factors, at, at, at + 1, at + 1),
           chosen(factors, at + 8, at + 8, at + 9, at + 9));
      }
    }
  }
#endif
};
struct Q6_K {
  static const int64_t numbers = 256, bytes = 210;
  template <class To> static inline void unpack(const uint8_t* block, To to) {
    float first = half(block + 208);
#pragma GCC unroll 16
    for (int s = 0; s < 16; s++) {
      int part = s / 2 % 4, place = s % 2 * 16;  // of a half: quarters of 32, each of two sixteens
      float d = first * (float)(int8_t)block[192 + s];
      Words code = read_codes(block + s / 8 * 64 + part % 2 * 32 + place) >> part / 2 * 4 & 15;
      code |= (read_codes(block + 128 + s / 8 * 32 + place) >> 2 * part & 3) << 4;
      to(16 * s, TO(Floats, (Integers)code - 32) * d);
    }
  }
#ifdef MULTIPLIES_BYTES
  template <class To> static inline void codes(const uint8_t* block, int64_t n, To to) {
    for (int64_t i = 0; i < n; i += 256, block += bytes) {
      Floats factors = half(block + 208) * read((const int8_t*)block + 192);
#pragma GCC unroll 4
      for (int part = 0; part < 4; part++) {
        __m512i upper = _mm512_broadcast_i64x4(loaded<__m256i>(block + 128 + part / 2 * 32));
        upper = _mm512_srlv_epi16(upper, part % 2 ? quarters(4, 4, 6, 6) : quarters(0, 0, 2, 2));
        Codes64 lower = loaded<Codes64>(block + part / 2 * 64) >> part % 2 * 4 & 15;
        fetch_ahead(block + 52 * part);
        to(i + 64 * part, lower | ((Codes64)upper & 3) << 4,
           chosen(factors, 4 * part, 4 * part + 1, 4 * part + 2, 4 * part + 3), -32.0f);
      }
    }
  }
#endif
};
"""
"""C++ that reads the same numbers, never in memory. kernels/decode.py has the vectors for it."""
READERS = {
    "Q4_0": "Low<false, 8>", "Q4_1": "Low<false, 0>", "Q5_0": "Low<true, 16>", "Q5_1": "Low<true, 0>", "Q8_0": "Q8_0",
    "Q4_K": "K<0>", "Q5_K": "K<32>", "Q6_K": "Q6_K",
}  # fmt: skip
"""By the name of a type, the C++ of READ_BLOCKS that reads it."""
