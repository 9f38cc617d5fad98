// Between the caller's row-major tensors and panels: copies, edges, element types.
#pragma once

#include <stdint.h>
#include <string.h>

#include "tiles.h"

namespace {

struct BFloat16 {
  uint16_t bits;
};

inline float widened(BFloat16 v) {
  const uint32_t bits = uint32_t(v.bits) << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
inline float widened(float v) { return v; }
inline double widened(double v) { return v; }

inline void narrow(float v, float &to) { to = v; }
inline void narrow(double v, double &to) { to = v; }
inline void narrow(BFloat16 v, BFloat16 &to) { to = v; }
inline void narrow(BFloat16 v, float &to) { to = widened(v); }
inline void narrow(float v, BFloat16 &to) {  // to the nearest, ties to even; NaN stays NaN
  uint32_t bits;
  memcpy(&bits, &v, 4);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to.bits = (bits & 0x7fffffff) > 0x7f800000 ? uint16_t((bits >> 16) | 0x40) : uint16_t(rounded);
}

inline int64_t clamp(int64_t value, int64_t most) { return value < 0 ? 0 : value < most ? value : most; }

// A whole panel row, or half of one, in another type; HARDWARE_BF16: the including file's instruction set rounds to
// bfloat16.
template <int WIDTH, class From, class To>
inline void narrow_row(const From *__restrict from, To *__restrict to) {
#ifdef HARDWARE_BF16
  if constexpr (WIDTH == 32 && __is_same(From, float) && __is_same(To, BFloat16)) {
    const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from));
    memcpy(to, &both, sizeof(both));
    return;
  }
  if constexpr (WIDTH == 16 && __is_same(From, float) && __is_same(To, BFloat16)) {
    const __m256bh half = _mm512_cvtneps_pbh(_mm512_loadu_ps(from));
    memcpy(to, &half, sizeof(half));
    return;
  }
#endif
#pragma GCC unroll 1  // a short loop would come out number by number instead of in vectors
  for (int c = 0; c < WIDTH; ++c) narrow(from[c], to[c]);
}

// The first numbers of it, rounded as the whole row is: hardware makes numbers below the normal ones zero.
template <int WIDTH, class From, class To>
inline void narrow_part(const From *__restrict from, int64_t valid, To *__restrict to) {
  To row[WIDTH];
  narrow_row<WIDTH>(from, row);
  memcpy(to, row, valid * sizeof(To));
}

// `count` numbers, at most twice MOST, in two copies that may overlap: a call of memcpy takes longer.
template <int MOST, class E>
inline void copy_few(const E *from, int64_t count, E *to) {
  if constexpr (MOST > 0) {
    if (count < MOST) return copy_few<MOST / 2>(from, count, to);
    E first[MOST], last[MOST];
    memcpy(first, from, sizeof(first));
    memcpy(last, from + count - MOST, sizeof(last));
    memcpy(to, first, sizeof(first));
    memcpy(to + count - MOST, last, sizeof(last));
  }
}

// One panel row of WIDTH columns from `valid` numbers in memory, zeros behind them.
template <int WIDTH, class From, class To>
inline void pack_row(const From *__restrict from, int64_t valid, To *__restrict to) {
  if (valid == WIDTH) return narrow_row<WIDTH>(from, to);
  for (int64_t c = 0; c < valid; ++c) narrow(from[c], to[c]);
  memset(to + valid, 0, (WIDTH - valid) * sizeof(To));
}

// `valid` numbers of one panel row back to memory, with a bias where there is one.
template <int WIDTH, class From, class To>
inline void store_row(const From *__restrict from, const To *__restrict bias, int64_t valid, To *__restrict to) {
  if (valid == WIDTH && !bias) {
    narrow_row<WIDTH>(from, to);
  } else if (valid == WIDTH) {
    From sums[WIDTH];
    for (int c = 0; c < WIDTH; ++c) sums[c] = from[c] + widened(bias[c]);
    narrow_row<WIDTH>(sums, to);
  } else if constexpr (__is_same(From, To)) {
    for (int64_t c = 0; c < valid; ++c) to[c] = bias ? from[c] + bias[c] : from[c];
  } else {
    From sums[WIDTH];
    for (int c = 0; c < WIDTH; ++c) sums[c] = from[c];
    for (int64_t c = 0; bias && c < valid; ++c) sums[c] += widened(bias[c]);
    narrow_part<WIDTH>(sums, valid, to);
  }
}

// The same where the row is of one feature, so that the bias is one number.
template <int WIDTH, class From, class To>
inline void store_line(const From *__restrict from, From bias, int64_t valid, To *__restrict to) {
  if (valid == WIDTH) {
    From sums[WIDTH];
    for (int c = 0; c < WIDTH; ++c) sums[c] = from[c] + bias;
    narrow_row<WIDTH>(sums, to);
  } else if constexpr (__is_same(From, To)) {
    for (int64_t c = 0; c < valid; ++c) to[c] = from[c] + bias;
  } else {
    From sums[WIDTH];
    for (int c = 0; c < WIDTH; ++c) sums[c] = from[c] + bias;
    narrow_part<WIDTH>(sums, valid, to);
  }
}

template <int BYTES>
struct Bits;
template <>
struct Bits<2> {
  using type = uint16_t;
};
template <>
struct Bits<4> {
  using type = uint32_t;
};
template <>
struct Bits<8> {
  using type = uint64_t;
};

// GCC knows this one in all versions (the other from 12 on), Clang only the other.
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, V{__VA_ARGS__})
#endif

// Four rows of four become four columns of four, in registers.
template <class E>
inline void transpose_4x4(const E *from, int64_t from_row, E *to, int64_t to_row) {
  typedef typename Bits<sizeof(E)>::type V __attribute__((vector_size(4 * sizeof(E))));
  V r0, r1, r2, r3;
  memcpy(&r0, from, sizeof(V));
  memcpy(&r1, from + from_row, sizeof(V));
  memcpy(&r2, from + 2 * from_row, sizeof(V));
  memcpy(&r3, from + 3 * from_row, sizeof(V));
  const V a = SHUFFLE(r0, r1, 0, 4, 1, 5), b = SHUFFLE(r0, r1, 2, 6, 3, 7);
  const V c = SHUFFLE(r2, r3, 0, 4, 1, 5), d = SHUFFLE(r2, r3, 2, 6, 3, 7);
  r0 = SHUFFLE(a, c, 0, 1, 4, 5);
  r1 = SHUFFLE(a, c, 2, 3, 6, 7);
  r2 = SHUFFLE(b, d, 0, 1, 4, 5);
  r3 = SHUFFLE(b, d, 2, 3, 6, 7);
  memcpy(to, &r0, sizeof(V));
  memcpy(to + to_row, &r1, sizeof(V));
  memcpy(to + 2 * to_row, &r2, sizeof(V));
  memcpy(to + 3 * to_row, &r3, sizeof(V));
}
#undef SHUFFLE

// to[c][r] = from[r][c].
template <class E>
inline void transpose(const E *from, int64_t from_row, int64_t rows, int64_t columns, E *to, int64_t to_row) {
  const int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
  for (int64_t r = 0; r < whole_rows; r += 4) {
    for (int64_t c = 0; c < whole_columns; c += 4)
      transpose_4x4(from + r * from_row + c, from_row, to + c * to_row + r, to_row);
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c) to[c * to_row + r] = from[r * from_row + c];
  }
}

// A panel of `rows` rows whose columns are rows in memory, `column` apart: `valid` of them.
template <int WIDTH, class E>
inline void pack_transposed(const E *from, int64_t column, int64_t rows, int64_t valid, E *to) {
  transpose(from, column, valid, rows, to, WIDTH);
  if (valid == WIDTH) return;
  for (int64_t r = 0; r < rows; ++r) memset(to + r * WIDTH + valid, 0, (WIDTH - valid) * sizeof(E));
}

// A panel of any matrix, one stride of which is 1.
template <int WIDTH, class E, class To>
inline void pack_panel(const E *from, int64_t row, int64_t column, int64_t rows, int64_t valid, To *to) {
  if constexpr (sizeof(E) == sizeof(To) && !__is_class(E)) {
    if (row == 1 && column != 1) return pack_transposed<WIDTH>(from, column, rows, valid, to);
  }
  for (int64_t r = 0; r < rows; ++r, to += WIDTH) {
    if (column == 1) {
      pack_row<WIDTH>(from + r * row, valid, to);
      continue;
    }
    for (int64_t c = 0; c < valid; ++c) narrow(from[r * row + c * column], to[c]);
    memset(to + valid, 0, (WIDTH - valid) * sizeof(To));
  }
}

// Rows 2r and 2r + 1 interleaved, which is how hardware that adds pairs of 16-bit products reads its right operand;
// a row of zeros stands in for one that is missing. Two neighbours are made as one 32-bit number, which vectorizes.
template <int WIDTH>
inline void pair_rows(const BFloat16 *__restrict from, int64_t rows, BFloat16 *__restrict to) {
  typedef uint32_t __attribute__((may_alias)) Pair;
  auto *pairs = reinterpret_cast<Pair *>(to);
  for (int64_t r = 0; r + 1 < rows; r += 2, from += 2 * WIDTH, pairs += WIDTH)
    for (int c = 0; c < WIDTH; ++c) pairs[c] = from[c].bits | uint32_t(from[WIDTH + c].bits) << 16;
  if (rows % 2)
    for (int c = 0; c < WIDTH; ++c) pairs[c] = from[c].bits;
}

// A panel of any matrix with its rows in pairs. Where pairs of rows are neighbours in memory, as the inner axis of a
// template mostly is, they are turned as one 32-bit number each.
template <int WIDTH, class E>
inline void pack_pairs(const E *from, int64_t row, int64_t column, int64_t rows, int64_t valid, BFloat16 *to) {
  if (row == 1 && column % 2 == 0 && rows % 2 == 0 && reinterpret_cast<uintptr_t>(from) % 4 == 0) {
    const auto *words = reinterpret_cast<const uint32_t *>(from);
    return pack_transposed<WIDTH>(words, column / 2, rows / 2, valid, reinterpret_cast<uint32_t *>(to));
  }
  BFloat16 two[2 * WIDTH];
  for (int64_t r = 0; r < rows; r += 2, to += 2 * WIDTH) {
    const int64_t count = rows - r < 2 ? 1 : 2;
    pack_panel<WIDTH>(from + r * row, row, column, count, valid, two);
    pair_rows<WIDTH>(two, count, to);
  }
}

}  // namespace
