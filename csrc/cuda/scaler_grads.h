// dS[(t,j), i] = sum_{b,a} Z[(t,j), (b,a)] dy[(b,a), i] with Z = sum_k x T: the kernel.
//
// A block owns BT templates, BJ scaler columns and up to 64 of i, for BA template rows: dS gets a partial sum for each
// block of a. A step is a chunk of k of one tile of tokens; after the last chunk Z is whole, is rounded, and is
// multiplied with dy.
#pragma once

#include "weight_grads.h"

namespace weit::cuda {

template <class T, int BJM>
__global__ void __launch_bounds__(kThreads, 1) scaler_grads(const __grid_constant__ GradJob job) {
  const WeightGrads &g = job.grads;
  constexpr int kDown = BJM / 32, kWide = kOwned / 16 / (kWarps / kDown);  // warps along (b,j); 16 of (t,a) a warp
  constexpr int T_tile = kOwned * kChunkStride;
  const int BT = job.BT(), BA = job.BA(), BJ = job.BJ(), BM = BJM / BJ, depth = job.depth();
  const int dy_stride = job.dy_stride(), z_stride = BM * BA + 8;
  T *x_s = reinterpret_cast<T *>(shared_memory()), *z_s = x_s + 2 * BJM * kChunkStride, *dy_s = z_s + job.z_tile(BM);
  T *T_s = dy_s + job.dy_tile(BM);

  const int64_t a_blocks = blocks_of(g.p, BA), t_blocks = blocks_of(g.N, BT), j_blocks = blocks_of(g.n, BJ);
  const int64_t i_blocks = blocks_of(g.m, depth), token_splits = g.splits.dS / a_blocks;
  int64_t block = blockIdx.x;
  const int64_t a_block = block % a_blocks, t0 = (block /= a_blocks) % t_blocks * BT;
  const int64_t j0 = (block /= t_blocks) % j_blocks * BJ, i0 = (block /= j_blocks) % i_blocks * depth;
  const int64_t split = block / i_blocks, a0 = a_block * BA;
  const int chunks = int(blocks_of(g.q, kChunk));
  const int64_t steps = tiles_of(g.M, BM, split, token_splits) * chunks;
  const int warp = threadIdx.x / 32, down = warp % kDown * 32, wide = warp / kDown * (16 * kWide);

  const auto first_token = [&](int64_t step) { return (split + step / chunks * token_splits) * BM; };
  const auto copy = [&](int64_t step) {  // what Z of a chunk of k needs
    const int64_t k0 = step % chunks * kChunk;
    stage_x<T>(job, x_s + step % 2 * (BJM * kChunkStride), kChunkStride, first_token(step), j0, k0, BJM, kLogChunk);
    if (job.factor_buffers < chunks || step < chunks)
      stage(
          T_s + step % job.factor_buffers * T_tile, kChunkStride, kOwned, kLogChunk, job.T_dense, g.T_k,
          [&](int r) -> Row<T> {
            const int64_t t = t0 + (r >> job.log_a), a = a0 + (r & (BA - 1));
            const bool inside = t < g.N && a < g.p;
            const int64_t at = t * g.T_t + a * g.T_a + k0 * g.T_k;
            return {static_cast<const T *>(g.T) + (inside ? at : 0), inside ? clamp(g.q - k0, kChunk) : 0};
          });
    copies_commit();
  };

  float sums[4][2][4] = {};  // 16 of (t,j) x 16 of i each
  float z[2][kWide][2][4];   // 16 of (b,j) x 16 of (t,a) each
  const int across = depth / 16, units = BT * BJ / 16 * across;
  if (steps) copy(0);
  for (int64_t step = 0; step < steps; ++step) {
    const int chunk = int(step % chunks);
    copies_wait<0>();
    __syncthreads();
    if (chunk == 0) stage_dy<T>(job, dy_s, first_token(step), i0, a0, BM);
    copies_commit();
    if (step + 1 < steps) copy(step + 1);

    const T *x = x_s + step % 2 * (BJM * kChunkStride);
    const T *templates = T_s + step % job.factor_buffers * T_tile;
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int c = 0; c < kWide; ++c)
        if (chunk == 0) clear(z[r][c]);
#pragma unroll
    for (int k = 0; k < kChunk; k += 16) {
      uint32_t a[2][4], b[4];
#pragma unroll
      for (int r = 0; r < 2; ++r) load_left(a[r], x + (down + 16 * r) * kChunkStride + k, kChunkStride);
#pragma unroll
      for (int c = 0; c < kWide; ++c) {
        load_right_of_transposed(b, templates + (wide + 16 * c) * kChunkStride + k, kChunkStride);
#pragma unroll
        for (int r = 0; r < 2; ++r) multiply_add<T>(z[r][c], a[r], b);
      }
    }
    if (chunk + 1 < chunks) continue;
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int c = 0; c < kWide; ++c)
        each_pair(z[r][c], [&](int row, int column, float first, float second) {
          row += down + 16 * r, column += wide + 16 * c;
          const int b = row >> job.log_j, j = row & (BJ - 1), t = column >> job.log_a, a = column & (BA - 1);
          *reinterpret_cast<uint32_t *>(z_s + (t * BJ + j) * z_stride + b * BA + a) = packed<T>(first, second);
        });
    if (step + 1 < steps)
      copies_wait<1>();  // dy; the next step's operands are still on their way
    else
      copies_wait<0>();
    __syncthreads();

#pragma unroll
    for (int u = 0; u < 4; ++u) {
      const int unit = warp + kWarps * u, row = unit / across * 16, i = unit % across * 16;
      if (unit >= units) break;
      for (int l = 0; l < BM * BA; l += 16) {
        uint32_t a[4], b[4];
        load_left(a, z_s + row * z_stride + l, z_stride);
        load_right_of_transposed(b, dy_s + ((l >> job.log_a) * depth + i) * dy_stride + (l & (BA - 1)), dy_stride);
        multiply_add<T>(sums[u], a, b);
      }
    }
  }

#pragma unroll
  for (int u = 0; u < 4; ++u) {
    const int unit = warp + kWarps * u;
    if (unit >= units) break;
    each_pair(sums[u], [&](int row, int column, float first, float second) {
      row += unit / across * 16;
      const int64_t t = t0 + (row >> job.log_j), j = j0 + (row & (BJ - 1)), i = i0 + unit % across * 16 + column;
      if (t >= g.N || j >= g.n) return;
      float *to = g.dS + (((split * a_blocks + a_block) * g.N + t) * g.m + i) * g.n + j;
      if (i < g.m) to[0] = first;
      if (i + 1 < g.m) to[g.n] = second;
    });
  }
}

}  // namespace weit::cuda
