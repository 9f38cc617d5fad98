// Register tiles of matrix products, for the instruction set that the including file chose (LANE_BYTES, MAX_ROWS, …).
//
// Every operand is in panels: `kWidth` columns wide (two vectors), rows one after the other, columns that the matrix
// lacks are zero. A panel is at once the right operand of a product over its rows (vectors along the columns) and the
// left operand of a product over its columns (single numbers, at constant offsets from one pointer), so nothing is
// ever transposed between two products.
#pragma once

#include <stdint.h>
#include <string.h>

namespace {

template <class A>
struct Vector {
  typedef A type __attribute__((vector_size(LANE_BYTES), may_alias));
};

// How one step of a product multiplies: a `Word` of the left operand, broadcast, or a vector of it, with a vector of
// the right one.
template <class A>
struct MultiplyAdd {
  using Element = A;  // what panels of operands hold
  using Word = A;
  using Sum = A;
  using V = typename Vector<A>::type;
  static constexpr int kPack = 1;  // elements a word
  static constexpr int kLanes = LANE_BYTES / sizeof(A);
  static inline V step(V sum, Word a, const Word *b) { return sum + a * *reinterpret_cast<const V *>(b); }
  static inline V step(V sum, const Word *a, const Word *b) {
    return sum + *reinterpret_cast<const V *>(a) * *reinterpret_cast<const V *>(b);
  }
};

// Where rows of a product go: panel rows. `put` takes a tile's sums; `skip` goes on to the rows behind it.
template <class Op>
struct PanelRows {
  typename Op::Sum *c;
  const int64_t *rows;  // the panel row of c where row r goes; null: r
  bool add;

  template <int ROWS, int VECTORS>
  inline void put(const typename Op::V (&sum)[ROWS][VECTORS]) const {
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      auto *row = reinterpret_cast<typename Op::V *>(c + (rows ? rows[r] : r) * 2 * Op::kLanes);
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v)
        row[v] = add ? row[v] + sum[r][v] : sum[r][v];  // added last: a long chain would round at the total's size
    }
  }
  inline void skip(int64_t count) {
    if (rows)
      rows += count;
    else
      c += count * 2 * Op::kLanes;
  }
};

// Steps over `length` words of the left operand (STEP apart, its rows ROW apart) and panel rows of the right operand.
template <class Op, int ROWS, int VECTORS>
inline void accumulate(
    typename Op::V (&sum)[ROWS][VECTORS], const typename Op::Word *a, int64_t row, int64_t step,
    const typename Op::Word *b, int64_t length) {
  constexpr int kLanes = Op::kLanes;
  for (int64_t l = 0; l < length; ++l, a += step, b += 2 * kLanes) {
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const typename Op::Word left = a[r * row];
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) sum[r][v] = Op::step(sum[r][v], left, b + v * kLanes);
    }
  }
}

// Where the inner axis lies: `count` stretches of `length` words, the last one shorter. In the left operand stretch i
// begins at `at[i]`, in the right one, where a word is a panel row, they are `stride` words apart.
struct Stretches {
  int64_t count, length, last, stride;
  const int64_t *at;
};

// Rows of A B: the inner axis runs along A's columns.
template <class Op, int VECTORS, class To, int ROWS>
void along_tile(
    const typename Op::Word *a, int64_t, const typename Op::Word *b, const Stretches &s, const To &to) {
  typename Op::V sum[ROWS][VECTORS] = {};
  constexpr int64_t kRow = 2 * Op::kLanes / Op::kPack;
  for (int64_t i = 0; i < s.count; ++i)
    accumulate<Op>(sum, a + s.at[i], kRow, 1, b + i * s.stride, i + 1 < s.count ? s.length : s.last);
  to.put(sum);
}

// Rows of A^T B: the inner axis runs down A's rows, `a_row` words apart.
template <class Op, int VECTORS, class To, int ROWS>
void down_tile(
    const typename Op::Word *a, int64_t a_row, const typename Op::Word *b, const Stretches &s, const To &to) {
  typename Op::V sum[ROWS][VECTORS] = {};
  for (int64_t i = 0; i < s.count; ++i)
    accumulate<Op>(sum, a + s.at[i], 1, a_row, b + i * s.stride, i + 1 < s.count ? s.length : s.last);
  to.put(sum);
}

template <class Op, class To>
using Tile = void (*)(
    const typename Op::Word *, int64_t, const typename Op::Word *, const Stretches &, const To &);

template <class Op, bool DOWN, int VECTORS, class To, int ROWS = MAX_ROWS>
struct Tiles : Tiles<Op, DOWN, VECTORS, To, ROWS - 1> {
  constexpr Tiles() { this->of[ROWS] = DOWN ? down_tile<Op, VECTORS, To, ROWS> : along_tile<Op, VECTORS, To, ROWS>; }
};
template <class Op, bool DOWN, int VECTORS, class To>
struct Tiles<Op, DOWN, VECTORS, To, 0> {
  Tile<Op, To> of[MAX_ROWS + 1] = {};
};
template <class Op, bool DOWN, int VECTORS, class To>
constexpr Tiles<Op, DOWN, VECTORS, To> kTiles{};

// How high the first tile is when `count` rows are cut into as few as possible, all nearly equally high. Beyond the
// table's end a tile of full height always leaves such a rest. A table, since small products feel a division.
struct Heights {
  int8_t of[MAX_ROWS * MAX_ROWS] = {};
  constexpr Heights() {
    for (int count = 1; count < MAX_ROWS * MAX_ROWS; ++count) {
      const int tiles = (count + MAX_ROWS - 1) / MAX_ROWS;
      of[count] = int8_t((count + tiles - 1) / tiles);
    }
  }
};
constexpr Heights kHeights{};

// All rows of a product, of which the first VECTORS of a panel row's two vectors are wanted. `a_row` is for products
// down A.
template <class Op, bool DOWN, int VECTORS, class To>
void product(
    const typename Op::Word *a, int64_t a_row, const typename Op::Word *b, const Stretches &s, To to, int64_t count) {
  const int64_t next = DOWN ? 1 : 2 * Op::kLanes / Op::kPack;
  for (int64_t height; count > 0; count -= height, a += height * next) {
    height = count < MAX_ROWS * MAX_ROWS ? kHeights.of[count] : MAX_ROWS;
    kTiles<Op, DOWN, VECTORS, To>.of[height](a, a_row, b, s, to);
    to.skip(height);
  }
}

// The same to panel rows: c[rows] (+)= A B or A^T B.
template <class Op, bool DOWN, int VECTORS = 2>
void product(
    const typename Op::Word *a, int64_t a_row, const typename Op::Word *b, const Stretches &s, typename Op::Sum *c,
    const int64_t *rows, int64_t count, bool add) {
  product<Op, DOWN, VECTORS>(a, a_row, b, s, PanelRows<Op>{c, rows, add}, count);
}

// d[i][c] += sum over tokens and columns of dy[b,i,:] z[b,c,:]. Lanes keep partial sums; they meet once a tile.
template <class Op>
void dots(
    const typename Op::Word *dy, int64_t m, const typename Op::Word *z, const int64_t *rows, int64_t columns,
    int64_t z_token, int64_t tokens, typename Op::Sum *d) {
  using V = typename Op::V;
  constexpr int kWords = 2 * Op::kLanes / Op::kPack, kI = DOT_ROWS, kC = DOT_COLUMNS;
  for (int64_t c0 = 0; c0 < columns; c0 += kC) {
    for (int64_t i0 = 0; i0 < m; i0 += kI) {
      const typename Op::Word *left[kI], *right[kC];  // past the edge: the last one again, result dropped
      for (int i = 0; i < kI; ++i) left[i] = dy + (i0 + i < m ? i0 + i : m - 1) * kWords;
      for (int c = 0; c < kC; ++c) right[c] = z + rows[c0 + c < columns ? c0 + c : columns - 1] * kWords;
      V sum[kI][kC] = {};
      for (int64_t b = 0; b < tokens; ++b) {
        for (int w = 0; w < kWords; w += Op::kLanes) {
#pragma GCC unroll 16
          for (int c = 0; c < kC; ++c) {
#pragma GCC unroll 16
            for (int i = 0; i < kI; ++i)
              sum[i][c] = Op::step(sum[i][c], left[i] + b * m * kWords + w, right[c] + b * z_token + w);
          }
        }
      }
      for (int i = 0; i < kI && i0 + i < m; ++i) {
        for (int c = 0; c < kC && c0 + c < columns; ++c) {
          typename Op::Sum total = 0;
          for (int lane = 0; lane < Op::kLanes; ++lane) total += sum[i][c][lane];
          d[(i0 + i) * columns + c0 + c] += total;
        }
      }
    }
  }
}

}  // namespace
