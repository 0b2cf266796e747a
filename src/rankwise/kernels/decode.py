"""One more token of each row, or some of one row, through a whole decoder, in one call of compiled code.

    x = x + o(attention(q, k, v of n(x))),   x = x + down(f(gate(n(x))) up(n(x)))      in each block, n is RMSNorm
    y = W x + b + B (A x)                                                              in each linear layer
    logits = head(n(x))

To write a token, every weight is read once and hardly anything is computed, so the time is that of reading, and of all
that stands between two products: a few hundred small operations, which take torch longer than the products of a small
model. Here nothing stands between them. Weights are read as they lie, in float32, bfloat16, float16, int8 with a scale
for each row, or blocks of a GGUF file; sums and factors are in float32. Keys and values of the token are
written to the last position of each block's cache (B, K, T, D), which has room for them. The model's own forward pass
is the reference for tests.

Where a processor multiplies bytes (VNNI), weights of eight bits and fewer are not unpacked to float32 but to their
codes q, and inputs are whole numbers of 16 bits with a scale s for each 64 of them, in two bytes u and l:

    x = s (256 u + l)       sum of w x = d s (256 sum of q u + sum of q l) + m s sum of (256 u + l),  w = d q + m

That rounds an input by 1/65,024 of the largest of its 64 at most.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.kernels.quantized.gguf import READ_BLOCKS
from rankwise.kernels.quantized.gguf import READERS as BLOCK_READERS
from rankwise.kernels.regions import NUMBERS, address, compiled_library

READERS = {
    "float32": "Numbers<float>", "bfloat16": "Numbers<uint16_t>", "int8": "Numbers<int8_t>", "F16": "Numbers<Half>",
} | {name: f"Blocks<{reader}>" for name, reader in BLOCK_READERS.items()}  # fmt: skip
"""By how a weight lies; a weight in int8 has a scale for each of its rows."""
KINDS = {name: number for number, name in enumerate(READERS)}
ACTIVATIONS = {"silu": 0, "gelu-tanh": 1}
DOTS = NUMBERS + r"""
#include <algorithm>
#include <initializer_list>
#include <memory>
#include <vector>
#ifdef __x86_64__
#include <immintrin.h>
#endif
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__F16C__) && !defined(UNROUNDED)
#define MULTIPLIES_BYTES
#endif

typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef int32_t Integers __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int16_t Shorts __attribute__((vector_size(32)));
typedef int8_t Bytes __attribute__((vector_size(16)));
typedef uint8_t Codes __attribute__((vector_size(16)));
static const int64_t W = 16;
static inline void fetch_ahead(const void* from) { __builtin_prefetch((const char*)from + 3072); }
#define TO(type, values) __builtin_convertvector(values, type)

template <class V, class T> static inline V loaded(const T* from) {
  V values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}
#ifdef __AVX512F__  // one instruction, which compilers do not find
static inline Integers widened(Bytes bytes) { return (Integers)_mm512_cvtepi8_epi32((__m128i)bytes); }
static inline Words widened(Codes codes) { return (Words)_mm512_cvtepu8_epi32((__m128i)codes); }
#else
static inline Integers widened(Bytes bytes) { return TO(Integers, TO(Shorts, bytes)); }
static inline Words widened(Codes codes) { return TO(Words, TO(Halves, codes)); }
#endif
static inline float half(uint16_t bits) {
  uint32_t moved = (uint32_t)(bits & 0x7fff) << 13;  // what is infinite or no number stays so
  float size = moved < 0x0f800000 ? same_bits<float>(moved) * 0x1p112f : same_bits<float>(moved | 0x7f800000);
  return bits & 0x8000 ? -size : size;
}
#ifdef __F16C__
static inline float half(const uint8_t* from) { return _cvtsh_ss(loaded<uint16_t>(from)); }
#else
static inline float half(const uint8_t* from) { return half(loaded<uint16_t>(from)); }
#endif

static inline Floats read(const float* from) { return loaded<Floats>(from); }
static inline Floats read(const uint16_t* from) {
  return same_bits<Floats>(TO(Words, loaded<Halves>(from)) << 16);
}
static inline Floats read(const int8_t* from) { return TO(Floats, widened(loaded<Bytes>(from))); }
static inline Words read_codes(const uint8_t* from) { return widened(loaded<Codes>(from)); }
struct Half { uint16_t bits; };
static inline float exact(Half x) { return half(x.bits); }
static inline float exact(int8_t x) { return x; }
static inline Floats read(const Half* from) {
  Words bits = TO(Words, loaded<Halves>((const uint16_t*)from));
  Words moved = (bits & 0x7fff) << 13, whole = (Words)(moved >= 0x0f800000) & 0x7f800000;
  return same_bits<Floats>(same_bits<Words>(same_bits<Floats>(moved) * 0x1p112f) | whole | (bits & 0x8000) << 16);
}
static inline float total(Floats values) {
  float sum = 0;
  for (int64_t i = 0; i < W; i++) sum += values[i];
  return sum;
}

// Inputs as 256 `upper` + `lower`, times a scale for each 64 of them; `sums` of each four, with their scale
struct Rounded {
  int8_t *upper, *lower;
  float *sums, *scales;
  Rounded from(int64_t row, int64_t n) const {
    return {upper + row * n, lower + row * n, sums + row * n / 4, scales + row * n / 64};
  }
};
static inline Rounded in_room(int8_t* room, int64_t n) {  // n % 64 == 0; it begins where a cache line does
  room += (64 - (uintptr_t)room % 64) % 64;
  return {room, room + n, (float*)(room + 2 * n), (float*)(room + 3 * n)};
}
#ifdef __AVX512F__
static const int64_t MOST = 8;  // rows that a row of weights is read for at once, by the number of registers
#else
static const int64_t MOST = 4;
#endif
#ifdef MULTIPLIES_BYTES
static const bool BYTES = true;
typedef uint8_t Codes64 __attribute__((vector_size(64)));
typedef uint8_t Bytes32 __attribute__((vector_size(32)));
static inline Codes64 two_of(Bytes32 first, Bytes32 second) {
  return (Codes64)_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)first), (__m256i)second, 1);
}
static inline Floats of_two(__m128 two) {
  const Integers places = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
  return (Floats)_mm512_permutexvar_ps((__m512i)places, _mm512_castps128_ps512(two));
}
static inline Floats halves(const uint8_t* first, const uint8_t* second) {
  return of_two(_mm_cvtph_ps(_mm_cvtsi32_si128(loaded<uint16_t>(first) | (uint32_t)loaded<uint16_t>(second) << 16)));
}
// Shifts of words of 16 bits, one for each quarter of a vector
static inline __m512i quarters(int16_t a, int16_t b, int16_t c, int16_t d) {
  __m256i low = _mm256_set_m128i(_mm_set1_epi16(b), _mm_set1_epi16(a));
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), _mm256_set_m128i(_mm_set1_epi16(d), _mm_set1_epi16(c)), 1);
}
static inline Floats chosen(Floats from, int a, int b, int c, int d) {
  Integers places = {a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d};
  return (Floats)_mm512_permutexvar_ps((__m512i)places, (__m512)from);
}
static inline Floats times_bytes(Codes64 codes, const int8_t* upper, const int8_t* lower) {
  __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), (__m512i)codes, _mm512_loadu_si512(upper));
  sum = _mm512_dpbusd_epi32(_mm512_slli_epi32(sum, 8), (__m512i)codes, _mm512_loadu_si512(lower));
  return (Floats)_mm512_cvtepi32_ps(sum);
}
static void round_inputs(const float* x, int64_t at, const Rounded& to) {
  Floats parts[4];
  Integers most = {};  // of the bits of sizes, above all of which lie those of what is no number
  for (int i = 0; i < 4; i++) {
    parts[i] = read(x + at + 16 * i);
    most = (Integers)_mm512_max_epi32((__m512i)most, (__m512i)(same_bits<Integers>(parts[i]) & 0x7fffffff));
  }
  float largest = same_bits<float>(_mm512_reduce_max_epi32((__m512i)most)), scale = largest / 32512.0f;
  float inverse = largest > 0 ? 32512.0f / largest : 0.0f;
  for (int i = 0; i < 4; i++) {
    __m512i whole = _mm512_cvtps_epi32((__m512)(parts[i] * inverse));
    __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8);
    __m512i lower = _mm512_sub_epi32(whole, _mm512_slli_epi32(upper, 8));
    _mm_storeu_si128((__m128i*)(to.upper + at + 16 * i), _mm512_cvtepi32_epi8(upper));
    _mm_storeu_si128((__m128i*)(to.lower + at + 16 * i), _mm512_cvtepi32_epi8(lower));
  }
  to.scales[at / 64] = scale;
  Codes64 ones = (Codes64)_mm512_set1_epi8(1);
  _mm512_storeu_ps(to.sums + at / 4, (__m512)(scale * times_bytes(ones, to.upper + at, to.lower + at)));
}
// N rows, each of n inputs, times a row of weights. `least` is a second factor, or a number of codes for all of them.
template <int N, class F, class T>
static inline void rounded_dots(const T* weight, const Rounded& x, int64_t n, float* sums) {
  Floats found[N] = {}, offset[N] = {};
  F::codes(weight, n, [&](int64_t at, Codes64 codes, Floats factors, auto least) {
#pragma GCC unroll 8
    for (int row = 0; row < N; row++) {
      int64_t place = row * n + at;
      Floats whole = times_bytes(codes, x.upper + place, x.lower + place) * x.scales[place / 64];
      if constexpr (sizeof(least) == sizeof(float)) whole += least * read(x.sums + place / 4);
      else offset[row] += least * read(x.sums + place / 4);
      found[row] += whole * factors;
    }
  });
#pragma GCC unroll 8
  for (int row = 0; row < N; row++) sums[row] = total(found[row] + offset[row]);
}
#else
static const bool BYTES = false;
#endif
// N rows of x, `step` apart, times a row of weights
template <class T> struct Numbers {
  static const bool coded = BYTES && sizeof(T) == 1;
  static const int64_t numbers = 1, bytes = sizeof(T);
#ifdef MULTIPLIES_BYTES
  template <class To> static inline void codes(const T* from, int64_t n, To to) {
    for (int64_t i = 0; i < n; i += 64) {
      fetch_ahead(from + i);
      to(i, loaded<Codes64>(from + i) ^ 0x80, Floats{} + 1.0f, -128.0f);
    }
  }
  template <int N> static inline void dots(const void* weight, int64_t o, const Rounded& x, int64_t n, float* sums) {
    rounded_dots<N, Numbers>((const T*)weight + o * n, x, n, sums);
  }
#endif
  template <int N> static inline void dots(const void* weight, int64_t o, const float* x, int64_t step, int64_t n,
                                           float* sums) {
    const T* w = (const T*)weight + o * n;
    Floats even[N] = {}, odd[N] = {};
    int64_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
      Floats first = read(w + i), second = read(w + i + W);
#pragma GCC unroll 8
      for (int row = 0; row < N; row++) {
        even[row] += first * read(x + row * step + i);
        odd[row] += second * read(x + row * step + i + W);
      }
    }
#pragma GCC unroll 8
    for (int row = 0; row < N; row++) {
      sums[row] = total(even[row] + odd[row]);
      for (int64_t j = i; j < n; j++) sums[row] += exact(w[j]) * x[row * step + j];
    }
  }
};
template <class F> struct Blocks {
  static const bool coded = BYTES;
  static const int64_t numbers = F::numbers;
#ifdef MULTIPLIES_BYTES
  template <int N> static inline void dots(const void* weight, int64_t o, const Rounded& x, int64_t n, float* sums) {
    rounded_dots<N, F>((const uint8_t*)weight + o * (n / F::numbers) * F::bytes, x, n, sums);
  }
#endif
  template <int N> static inline void dots(const void* weight, int64_t o, const float* x, int64_t step, int64_t n,
                                           float* sums) {
    const uint8_t* block = (const uint8_t*)weight + o * (n / F::numbers) * F::bytes;
    Floats even[N] = {}, odd[N] = {};
    for (int64_t i = 0; i < n; i += F::numbers, block += F::bytes)
      F::unpack(block, [&](int64_t at, Floats values) {
#pragma GCC unroll 8
        for (int row = 0; row < N; row++)
          (at & W ? odd[row] : even[row]) += values * read(x + row * step + i + at);
      });
#pragma GCC unroll 8
    for (int row = 0; row < N; row++) sums[row] = total(even[row] + odd[row]);
  }
};
template <class T> static inline float dot(const T* w, const float* x, int64_t n) {
  float sum;
  Numbers<T>::template dots<1>(w, 0, x, 0, n, &sum);
  return sum;
}
"""  # fmt: skip
SOURCE = DOTS + READ_BLOCKS + r"""

struct Linear { const void* weight; const float *scales, *bias; int64_t kind, outputs, inputs; };
struct Factors { const float *A, *B; int64_t rank; };
struct Block { const float *norm, *middle, *q_norm, *k_norm; Linear q, k, v, o, gate, up, down; };
struct Cache { void *keys, *values; int64_t row, head; };
struct Model {
  const Block* blocks;
  int64_t count;
  const float* last;
  Linear head;
  float eps, scale;
  int64_t width, heads, groups, size, kind, activation;
};

static inline bool in_64s(int64_t inputs) { return inputs % 64 == 0; }
// N rows, rounded where the weights have codes
template <class R, int N>
static inline void dots(const Linear& layer, int64_t o, const float* x, const Rounded& rounded, int64_t row,
                        float* sums) {
  int64_t n = layer.inputs;
  if constexpr (R::coded) {
    if (R::numbers == 256 || in_64s(n)) return R::template dots<N>(layer.weight, o, rounded.from(row, n), n, sums);
  }
  if constexpr (!R::coded || R::numbers < 256) R::template dots<N>(layer.weight, o, x + row * n, n, n, sums);
}

struct Product { const Linear& layer; const Factors& factors; float *h, *y; };
template <class R>
static void multiply(const Product& one, const float* x, const Rounded& rounded, int64_t rows, bool adds) {
  const Linear& layer = one.layer;
  int64_t rank = one.factors.rank;
#pragma omp for schedule(static) nowait
  for (int64_t o = 0; o < layer.outputs; o++) {
    float scale = layer.scales ? layer.scales[o] : 1.0f, bias = layer.bias ? layer.bias[o] : 0.0f, sums[MOST];
    for (int64_t row = 0; row < rows;) {
      int64_t many = rows - row >= MOST ? MOST : rows - row >= 4 ? 4 : 1;
      if (many == MOST) dots<R, MOST>(layer, o, x, rounded, row, sums);
      else if (many == 4) dots<R, 4>(layer, o, x, rounded, row, sums);
      else dots<R, 1>(layer, o, x, rounded, row, sums);
      for (int64_t i = 0; i < many; i++, row++) {
        float value = sums[i] * scale + bias;
        if (rank) value += dot(one.factors.B + o * rank, one.h + row * rank, rank);
        float* out = one.y + row * layer.outputs + o;
        *out = adds ? *out + value : value;
      }
    }
  }
}

// Called by all threads, who need a barrier before they use y. Each thread rounds all inputs for itself, which is
// shorter than a barrier.
static void apply(std::initializer_list<Product> products, const float* x, const Rounded& rounded, int64_t rows,
                  bool adds) {
  static const struct { decltype(&multiply<Numbers<float>>) multiply; bool coded; } by_kind[] = {KINDS};
  bool adapted = false, rounds = false;
  int64_t n = products.begin()->layer.inputs;
  for (const Product& one : products) {
    const Factors& own = one.factors;
    rounds = rounds || (by_kind[one.layer.kind].coded && in_64s(n));
    if (!own.rank) continue;
    adapted = true;
#pragma omp for schedule(static) nowait
    for (int64_t at = 0; at < rows * own.rank; at++)
      one.h[at] = dot(own.A + at % own.rank * n, x + at / own.rank * n, n);
  }
  if (adapted) {
#pragma omp barrier
  }
#ifdef MULTIPLIES_BYTES
  for (int64_t at = 0; rounds && at < rows * n; at += 64) round_inputs(x, at, rounded);
#endif
  for (const Product& one : products) by_kind[one.layer.kind].multiply(one, x, rounded, rows, adds);
}

static void normed(const float* x, const float* factor, float eps, int64_t n, float* y) {
  float scale = 1.0f / std::sqrt(dot(x, x, n) / n + eps);
  for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale * factor[i];
}

static void turned(float* x, const float* cos, const float* sin, int64_t size) {
  for (int64_t i = 0; i < size / 2; i++) {
    float first = x[i], second = x[i + size / 2];
    x[i] = first * cos[i] - second * sin[i];
    x[i + size / 2] = second * cos[i + size / 2] + first * sin[i + size / 2];
  }
}

template <class C>
static void attend(const Model& model, const Cache& cache, const float* q, const uint8_t* seen, int64_t row,
                   int64_t head, int64_t length, float* out, std::vector<float>& scores) {
  int64_t size = model.size, place = row * cache.row + head / (model.heads / model.groups) * cache.head;
  const C *keys = (const C*)cache.keys + place, *values = (const C*)cache.values + place;
  float most = -INFINITY, sum = 0;
  for (int64_t t = 0; t < length; t++)
    if (seen[t]) most = std::max(most, scores[t] = model.scale * dot(keys + t * size, q, size));
  std::fill(out, out + size, 0.0f);
  for (int64_t t = 0; t < length; t++) {
    if (!seen[t]) continue;
    float share = std::exp(scores[t] - most);
    sum += share;
    for (int64_t i = 0; i < size; i++) out[i] += share * exact(values[t * size + i]);
  }
  for (int64_t i = 0; i < size; i++) out[i] /= sum;
}

template <class C>
static void step(const Model& model, const Cache* caches, const Factors* factors, float* x, const float* cos,
                 const float* sin, const uint8_t* seen, int64_t rows, int64_t length, int64_t in_turn, float* logits,
                 int64_t threads) {
  const Block& first = model.blocks[0];
  int64_t size = model.size, wide = model.heads * size, few = model.groups * size, inner = first.gate.outputs, rank = 0;
  for (int64_t at = 0; at < 7 * model.count; at++) rank = std::max(rank, factors[at].rank);
  std::vector<float> room(rows * (2 * wide + 2 * few + 2 * inner + 3 * rank));
  float *q = room.data(), *k = q + rows * wide, *v = k + rows * few, *seen_values = v + rows * few;
  float *gate = seen_values + rows * wide, *up = gate + rows * inner, *h = up + rows * inner;
  float *h2 = h + rows * rank, *h3 = h2 + rows * rank;
  int64_t most = (rows * std::max(std::max(model.width, wide), inner) + 63) / 64 * 64;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> scores(length), normed_rows(rows * model.width);
    std::unique_ptr<int8_t[]> bytes(new int8_t[BYTES ? 3 * most + most / 16 + 64 : 0]);
    Rounded rounded = in_room(bytes.get(), most);
    float* n = normed_rows.data();
    auto place = [&](int64_t row) { return in_turn ? 0 : row; };  // in the caches
    auto until = [&](int64_t row) { return in_turn ? length - rows + row + 1 : length; };
    auto norm = [&](const float* factor) {  // by each thread for itself
      for (int64_t row = 0; row < rows; row++)
        normed(x + row * model.width, factor, model.eps, model.width, n + row * model.width);
    };
    for (int64_t number = 0; number < model.count; number++) {
      const Block& block = model.blocks[number];
      const Cache& cache = caches[number];
      const Factors* own = factors + 7 * number;
      norm(block.norm);
      apply({{block.q, own[0], h, q}, {block.k, own[1], h2, k}, {block.v, own[2], h3, v}}, n, rounded, rows, false);
#pragma omp barrier
#pragma omp for schedule(static)
      for (int64_t at = 0; at < rows * model.groups; at++) {
        int64_t row = at / model.groups, group = at % model.groups;
        float *key = k + at * size, *value = v + at * size;
        if (block.k_norm) normed(key, block.k_norm, model.eps, size, key);
        turned(key, cos + row * size, sin + row * size, size);
        int64_t to = place(row) * cache.row + group * cache.head + (until(row) - 1) * size;
        for (int64_t i = 0; i < size; i++) {
          store(key[i], (C*)cache.keys + to + i);
          store(value[i], (C*)cache.values + to + i);
        }
      }
#pragma omp for schedule(static)
      for (int64_t at = 0; at < rows * model.heads; at++) {
        int64_t row = at / model.heads;
        float* query = q + at * size;
        if (block.q_norm) normed(query, block.q_norm, model.eps, size, query);
        turned(query, cos + row * size, sin + row * size, size);
        attend<C>(model, cache, query, seen + place(row) * length, place(row), at % model.heads, until(row),
                  seen_values + at * size, scores);
      }
      apply({{block.o, own[3], h, x}}, seen_values, rounded, rows, true);
#pragma omp barrier
      norm(block.middle);
      apply({{block.gate, own[4], h, gate}, {block.up, own[5], h2, up}}, n, rounded, rows, false);
// Static loops of equal length have equal shares: each thread reads what it has just written, and there is no barrier.
#pragma omp for schedule(static)
      for (int64_t o = 0; o < inner; o++)
        for (int64_t i = o; i < rows * inner; i += inner) {
          float e = gate[i];
          float active = model.activation == 0
            ? e / (1.0f + std::exp(-e))
            : 0.5f * e * (1.0f + std::tanh(0.7978845608028654f * (e + 0.044715f * e * e * e)));
          gate[i] = active * up[i];
        }
      apply({{block.down, own[6], h, x}}, gate, rounded, rows, true);
#pragma omp barrier
    }
    norm(model.last);
    int64_t before = in_turn ? rows - 1 : 0;
    apply({{model.head, Factors{}, h, logits}}, n + before * model.width, rounded, rows - before, false);
  }
}

extern "C" void decode_step(const Model* model, const Cache* caches, const Factors* factors, float* x,
                            const float* cos, const float* sin, const uint8_t* seen, int64_t rows, int64_t length,
                            int64_t in_turn, float* logits, int64_t threads) {
  (model->kind == 0 ? step<float> : step<uint16_t>)(*model, caches, factors, x, cos, sin, seen, rows, length, in_turn,
                                                    logits, threads);
}

extern "C" double error() {  // of a block of 64 numbers, whose weights lie in three formats, for thirteen rows
  std::vector<float> x(832), ones(832, 1.0f), none(832), kept(1664), logits(832), scales(64, 0.015625f), whole(4096);
  std::vector<uint16_t> rounded(4096);
  std::vector<int8_t> bytes(4096), seen(13, 1);
  std::vector<Factors> factors(7);
  for (int i = 0; i < 4096; i++) store(whole[i] = bytes[i] = i * 7 % 17 - 8, &rounded[i]);
  for (int i = 0; i < 832; i++) x[i] = i * 5 % 11 - 5;
  const float *one = ones.data(), *scale = scales.data();
  Linear a = {whole.data(), scale, nullptr, 0, 64, 64}, b = {rounded.data(), scale, nullptr, 1, 64, 64};
  Linear c = {bytes.data(), scale, nullptr, 2, 64, 64};
  Block block = {one, one, nullptr, nullptr, a, b, c, b, a, c, b};
  Cache cache = {kept.data(), kept.data() + 832, 64, 64};
  Model model = {&block, 1, one, c, 0.0f, 0.125f, 64, 1, 1, 64, 0, 0};
  decode_step(&model, &cache, factors.data(), x.data(), one, none.data(), (uint8_t*)seen.data(), 13, 1, 0,
              logits.data(), 1);
  double sum = 0;
  for (int i = 0; i < 832; i++) sum += logits[i] * (i % 7);
  return std::abs(sum - 2.22978);
}
""".replace("KINDS", ", ".join(f"{{multiply<{reader}>, {reader}::coded}}" for reader in READERS.values()))  # fmt: skip
FLAGS = ("-ftree-loop-vectorize", "-fno-math-errno", "-ffp-contract=fast")


class LinearStruct(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("scales", ctypes.c_void_p), ("bias", ctypes.c_void_p),
                ("kind", ctypes.c_int64), ("outputs", ctypes.c_int64), ("inputs", ctypes.c_int64))  # fmt: skip


class FactorsStruct(ctypes.Structure):
    _fields_ = (("A", ctypes.c_void_p), ("B", ctypes.c_void_p), ("rank", ctypes.c_int64))


class BlockStruct(ctypes.Structure):
    _fields_ = (*((name, ctypes.c_void_p) for name in ("norm", "middle", "q_norm", "k_norm")),
                *((name, LinearStruct) for name in ("q", "k", "v", "o", "gate", "up", "down")))  # fmt: skip


class CacheStruct(ctypes.Structure):
    _fields_ = (("keys", ctypes.c_void_p), ("values", ctypes.c_void_p), ("row", ctypes.c_int64),
                ("head", ctypes.c_int64))  # fmt: skip


class ModelStruct(ctypes.Structure):
    _fields_ = (
        ("blocks", ctypes.c_void_p), ("count", ctypes.c_int64), ("last", ctypes.c_void_p), ("head", LinearStruct),
        ("eps", ctypes.c_float), ("scale", ctypes.c_float),
        *((name, ctypes.c_int64) for name in ("width", "heads", "groups", "size", "kind", "activation")),
    )  # fmt: skip


@dataclass(frozen=True)
class StoredLinear:
    """A weight of this `shape` (O, I), which lies as READERS has its `kind`; the scale of each row (O,) of int8 and a
    bias (O,), both in float32."""

    kind: str
    weight: Tensor
    shape: tuple[int, int]
    scales: Tensor | None = None
    bias: Tensor | None = None

    def described(self) -> LinearStruct:
        return LinearStruct(*map(address, (self.weight, self.scales, self.bias)), KINDS[self.kind], *self.shape)


@dataclass(frozen=True)
class DecoderBlock:
    """Factors of its norms, in float32, and its linear layers, as forward/decoders.py has them."""

    norms: Sequence[Tensor]
    linears: Sequence[StoredLinear]


@dataclass(frozen=True)
class DecoderSettings:
    """`groups` are heads of keys and values, `size` is that of a head, `scale` a factor of the scores of attention, and
    `dtype` the number format of the cache."""

    eps: float
    scale: float
    heads: int
    groups: int
    size: int
    activation: str
    dtype: torch.dtype


LowRank = Sequence[Sequence[tuple[Tensor, Tensor] | None]]
"""A (R, I) and B (O, R) in float32 of each linear layer of each block."""


class DecodeKernel:
    """What it is given must not change while it is used."""

    def __init__(
        self, blocks: Sequence[DecoderBlock], last: Tensor, head: StoredLinear, settings: DecoderSettings
    ) -> None:
        described = [
            BlockStruct(*map(address, [*one.norms, None, None][:4]), *(linear.described() for linear in one.linears))
            for one in blocks
        ]  # fmt: skip
        self._alive = blocks, last, head, (BlockStruct * len(blocks))(*described)
        self._outputs, self._count = head.shape[0], len(blocks)
        self._model = ModelStruct(
            ctypes.addressof(self._alive[-1]), len(blocks), last.data_ptr(), head.described(), settings.eps,
            settings.scale, len(last), settings.heads, settings.groups, settings.size,
            int(settings.dtype == torch.bfloat16), ACTIVATIONS[settings.activation],
        )  # fmt: skip

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, seen: Tensor, caches: Sequence[tuple[Tensor, Tensor]],
        factors: LowRankFactors,
    ) -> Tensor:  # fmt: skip
        """Logits (B, V) of x (B, d), by cosines and sines (B, D), all in float32, and which positions (B, T) are seen,
        in bool. x is changed. Where there is one row of positions (1, T), the tokens follow each other at its end, and
        the logits (1, V) are those of the last."""
        kept = (CacheStruct * self._count)(
            *((keys.data_ptr(), values.data_ptr(), keys.stride(0), keys.stride(1)) for keys, values in caches)
        )
        logits = x.new_empty(len(seen), self._outputs)
        compiled_library(SOURCE, FLAGS).decode_step(
            ctypes.byref(self._model), kept, factors.described,
            *map(address, (x, cos, sin, seen)),
            *map(ctypes.c_int64, (len(x), seen.shape[1], len(seen) < len(x))), address(logits),
            ctypes.c_int64(torch.get_num_threads()),
        )  # fmt: skip
        return logits


class LowRankFactors:
    def __init__(self, factors: LowRank) -> None:
        self._alive = factors
        described = [
            FactorsStruct() if pair is None else FactorsStruct(*map(address, pair), len(pair[0]))
            for block in factors
            for pair in block
        ]
        self.described = (FactorsStruct * len(described))(*described)


def can_decode() -> bool:
    """Whether there is a C++ compiler that works. That of Windows has no vectors as they are written here."""
    return sys.platform != "win32" and compiled_library(SOURCE, FLAGS) is not None
