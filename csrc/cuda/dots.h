// Products of few rows, made by warps straight from memory: out[r, c] = sum_l row_r[l] col_c[l].
//
// Both operands are given as rows whose numbers lie along the inner axis, so 16 bytes a lane are loaded from global or
// shared memory into the registers that multiply: no operand is copied or transposed on its way.
#pragma once

#include <launch.h>
#include <ptx.h>

#include "rows.h"

namespace weit::cuda {

constexpr int kWarps = 8;

// What one warp sums: R x C matrix instructions' tiles of 16 x 8. A row's numbers are dealt to the lanes in pieces of
// 16 bytes, not in the order that the instruction's layout names: both operands alike, so the sum is the same.
template <class T, int R, int C>
struct Dots {
  static constexpr int kRows = 16 * R, kCols = 8 * C, kChunk = 32;
  float sums[R][C][4] = {};

  // Chunks `first`, `first + step` and so on of the inner axis.
  template <bool DENSE, class Rows, class Cols>
  __device__ __forceinline__ void accumulate(
      const Rows &rows, const Cols &cols, int64_t col_stride, int inner, int first, int step) {
    constexpr int kDepth = DENSE && R * C == 1 ? 4 : 1;  // chunks loaded before the first is used
    const int lane = threadIdx.x % 32, g = lane / 4, shift = 8 * (lane % 4);
    Row<T> row[2 * R], col[C];
#pragma unroll
    for (int r = 0; r < 2 * R; ++r) row[r] = rows(8 * r + g);
#pragma unroll
    for (int c = 0; c < C; ++c) col[c] = cols(8 * c + g);
    for (int k = first * kChunk + shift; k - shift < inner; k += step * kChunk * kDepth) {
      uint4 a[kDepth][2 * R], b[kDepth][C];
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
#pragma unroll
        for (int r = 0; r < 2 * R; ++r) a[d][r] = load<DENSE>(row[r], k + d * step * kChunk, 1);
#pragma unroll
        for (int c = 0; c < C; ++c) b[d][c] = load<DENSE>(col[c], k + d * step * kChunk, col_stride);
      }
#pragma unroll
      for (int d = 0; d < kDepth; ++d)
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const uint4 top = a[d][2 * r], low = a[d][2 * r + 1];
          const uint32_t one[4] = {top.x, low.x, top.y, low.y}, two[4] = {top.z, low.z, top.w, low.w};
#pragma unroll
          for (int c = 0; c < C; ++c) {
            multiply_add<T>(sums[r][c], one, b[d][c].x, b[d][c].y);
            multiply_add<T>(sums[r][c], two, b[d][c].z, b[d][c].w);
          }
        }
    }
  }

  // put(r, c, sum) for every element of the tile, each by one lane.
  template <class Put>
  __device__ __forceinline__ void each(const Put &put) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          put(16 * r + lane / 4 + e / 2 * 8, 8 * c + 2 * (lane % 4) + e % 2, sums[r][c][e]);
  }
};

// float32 has no matrix instruction: lanes lie along the inner axis, and each ends up with one of the 32 sums.
template <>
struct Dots<float, 1, 1> {
  static constexpr int kRows = 8, kCols = 4, kChunk = 128;
  float sums[kRows * kCols] = {};

  template <bool DENSE, class Rows, class Cols>
  __device__ __forceinline__ void accumulate(
      const Rows &rows, const Cols &cols, int64_t col_stride, int inner, int first, int step) {
    Row<float> row[kRows], col[kCols];
#pragma unroll
    for (int r = 0; r < kRows; ++r) row[r] = rows(r);
#pragma unroll
    for (int c = 0; c < kCols; ++c) col[c] = cols(c);
    const int shift = 4 * (threadIdx.x % 32);
    for (int k = first * kChunk + shift; k - shift < inner; k += step * kChunk) {
      uint4 a[kRows], b[kCols];
#pragma unroll
      for (int r = 0; r < kRows; ++r) a[r] = load<DENSE>(row[r], k, 1);
#pragma unroll
      for (int c = 0; c < kCols; ++c) b[c] = load<DENSE>(col[c], k, col_stride);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int c = 0; c < kCols; ++c) {
          float &sum = sums[r * kCols + c];
          sum += __uint_as_float(a[r].x) * __uint_as_float(b[c].x);
          sum += __uint_as_float(a[r].y) * __uint_as_float(b[c].y);
          sum += __uint_as_float(a[r].z) * __uint_as_float(b[c].z);
          sum += __uint_as_float(a[r].w) * __uint_as_float(b[c].w);
        }
    }
  }

  template <class Put>
  __device__ __forceinline__ void each(const Put &put) {
    const int lane = threadIdx.x % 32;
    put(lane / kCols, lane % kCols, sum_for_each_lane(sums, lane));
  }
};

// How a block's warps share a product: tiles, and parts of the inner axis where there are fewer tiles than warps.
template <class Tile>
struct Shares {
  int tiles, across, splits;
  __host__ __device__ Shares(int rows, int cols, int inner) {
    across = int(blocks_of(cols, Tile::kCols));
    tiles = int(blocks_of(rows, Tile::kRows)) * across;
    const int chunks = int(blocks_of(inner, Tile::kChunk)), most = kWarps / tiles;
    splits = most < 1 ? 1 : most < chunks ? most : chunks;
  }
};

// out[split, r, c] of `rows` x `cols` numbers for every split, or added to it.
template <class Tile, bool DENSE, class Rows, class Cols>
__device__ __forceinline__ void product(
    const Rows &row_at, const Cols &col_at, int64_t col_stride, int rows, int cols, int inner, float *out, bool add) {
  const Shares<Tile> shares(rows, cols, inner);
  for (int share = threadIdx.x / 32; share < shares.tiles * shares.splits; share += kWarps) {
    const int tile = share % shares.tiles, split = share / shares.tiles;
    const int r0 = tile / shares.across * Tile::kRows, c0 = tile % shares.across * Tile::kCols;
    Tile sum;
    sum.template accumulate<DENSE>(
        [&](int r) { return row_at(r0 + r); }, [&](int c) { return col_at(c0 + c); }, col_stride, inner, split,
        shares.splits);
    sum.each([&](int r, int c, float value) {
      if (r0 + r >= rows || c0 + c >= cols) return;
      float &to = out[(split * rows + r0 + r) * cols + c0 + c];
      to = add ? to + value : value;
    });
  }
}

}  // namespace weit::cuda
