// dT[(t,a), k] = sum_{b,j} V[(t,a), (b,j)] x[(b,j), k] with V = sum_i S dy: the kernel.
//
// A block owns 128 of (t,a) and 128 of k, for all scaler columns. A step is a chunk of i of one tile of tokens and BJ
// scaler columns; after the last chunk V is whole, is rounded, and is multiplied with x.
#pragma once

#include "weight_grads.h"

namespace weit::cuda {

template <class T, int BJM>
__global__ void __launch_bounds__(kThreads, 1) template_grads(const __grid_constant__ GradJob job) {
  const WeightGrads &g = job.grads;
  constexpr int kUnits = BJM / 16;  // of V, a warp
  const int BT = job.BT(), BA = job.BA(), BJ = job.BJ(), BM = BJM / BJ, depth = job.depth();
  const int dy_stride = job.dy_stride(), dy_tile = job.dy_tile(BM), S_stride = depth + 8;
  T *x_s = reinterpret_cast<T *>(shared_memory()), *v_s = x_s + 2 * BJM * kStride, *dy_s = v_s + BJM * kStride;
  T *S_s = dy_s + 2 * dy_tile;

  const int64_t a_blocks = blocks_of(g.p, BA), t_blocks = blocks_of(g.N, BT), k_blocks = blocks_of(g.q, kOwned);
  int64_t block = blockIdx.x;
  const int64_t a0 = block % a_blocks * BA, t0 = (block /= a_blocks) % t_blocks * BT;
  const int64_t k0 = (block /= t_blocks) % k_blocks * kOwned, split = block / k_blocks;
  const int j_blocks = int(blocks_of(g.n, BJ)), chunks = int(blocks_of(g.m, depth));
  const int64_t steps = tiles_of(g.M, BM, split, g.splits.dT) * j_blocks * chunks;
  const int warp = threadIdx.x / 32;

  const auto copy = [&](int64_t step) {  // what V of a chunk of i needs, and with the first chunk x
    const int64_t work = step / chunks, i0 = step % chunks * depth, j0 = work % j_blocks * BJ;
    const int64_t b0 = (split + work / j_blocks * g.splits.dT) * BM;
    stage_dy<T>(job, dy_s + step % 2 * dy_tile, b0, i0, a0, BM);
    if (i0 == 0) stage_x<T>(job, x_s + work % 2 * (BJM * kStride), kStride, b0, j0, k0, BJM, kLogOwned);
    if (job.factor_buffers < j_blocks * chunks || step < j_blocks * chunks)
      stage(
          S_s + step % job.factor_buffers * job.S_tile(), S_stride, BT * BJ, job.log_depth, false, g.S_i,
          [&](int r) -> Row<T> {
            const int64_t t = t0 + (r >> job.log_j), j = j0 + (r & (BJ - 1));
            const bool inside = t < g.N && j < g.n;
            const int64_t at = t * g.S_t + i0 * g.S_i + j * g.S_j;
            return {static_cast<const T *>(g.S) + (inside ? at : 0), inside ? clamp(g.m - i0, depth) : 0};
          });
    copies_commit();
  };

  float sums[2][4][2][4] = {};  // 32 of (t,a) x 64 of k
  float v[kUnits][2][4];        // 16 of (t,j) x 16 of (b,a) each
  const int across = BM * BA / 16;
  if (steps) copy(0);
  for (int64_t step = 0; step < steps; ++step) {
    const int chunk = int(step % chunks);
    copies_wait<0>();
    __syncthreads();
    if (step + 1 < steps) copy(step + 1);

    const T *dy = dy_s + step % 2 * dy_tile, *S = S_s + step % job.factor_buffers * job.S_tile();
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int row = (warp * kUnits + u) / across * 16, column = (warp * kUnits + u) % across * 16;
      if (chunk == 0) clear(v[u]);
      for (int i = 0; i < depth; i += 16) {
        uint32_t a[4], b[4];
        load_left(a, S + row * S_stride + i, S_stride);
        load_right(b, dy + ((column >> job.log_a) * depth + i) * dy_stride + (column & (BA - 1)), dy_stride);
        multiply_add<T>(v[u], a, b);
      }
      if (chunk + 1 < chunks) continue;
      each_pair(v[u], [&](int r, int c, float first, float second) {
        const int t = (row + r) >> job.log_j, j = (row + r) & (BJ - 1);
        const int b = (column + c) >> job.log_a, a = (column + c) & (BA - 1);
        *reinterpret_cast<uint32_t *>(v_s + (b * BJ + j) * kStride + t * BA + a) = packed<T>(first, second);
      });
    }
    if (chunk + 1 < chunks) continue;
    __syncthreads();

    const T *x = x_s + step / chunks % 2 * (BJM * kStride);
#pragma unroll
    for (int l = 0; l < BJM; l += 16) {
      uint32_t a[2][4], b[4];
#pragma unroll
      for (int r = 0; r < 2; ++r) load_left_of_transposed(a[r], v_s + l * kStride + warp / 2 * 32 + 16 * r, kStride);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        load_right(b, x + l * kStride + warp % 2 * 64 + 16 * c, kStride);
#pragma unroll
        for (int r = 0; r < 2; ++r) multiply_add<T>(sums[r][c], a[r], b);
      }
    }
  }

#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int c = 0; c < 4; ++c)
      each_pair(sums[r][c], [&](int row, int column, float first, float second) {
        row += warp / 2 * 32 + 16 * r;
        const int64_t t = t0 + (row >> job.log_a), a = a0 + (row & (BA - 1)), k = k0 + warp % 2 * 64 + 16 * c + column;
        if (t >= g.N || a >= g.p) return;
        float *to = g.dT + ((split * g.N + t) * g.p + a) * g.q + k;
        if (k < g.q) to[0] = first;
        if (k + 1 < g.q) to[1] = second;
      });
}

}  // namespace weit::cuda
