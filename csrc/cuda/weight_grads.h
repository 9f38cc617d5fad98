// What the kernels of dT and dS share.
//
// A block owns 128 of (t,a) and sums over tiles of tokens, every `splits`-th tile. The sums are float32 registers for
// the whole loop and leave once, as a partial sum. The intermediate of a tile is rounded to the operands' type on its
// way through shared memory, where it is put in the order of the second product. While a step is multiplied, the next
// step's operands are copied. Tiles are of powers of two, BT BA = 128 and BM BJ = BJM, so that the tiles of any layer
// have the same shape when they are multiplied.
#pragma once

#include <launch.h>
#include <ptx.h>

#include "fragments.h"
#include "kernels.h"
#include "rows.h"

namespace weit::cuda {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kOwned = 128, kLogOwned = 7;  // (t,a) of a block; k of its dT
constexpr int kChunk = 64, kLogChunk = 6;   // k at a time inside Z
constexpr int kStride = kOwned + 8, kChunkStride = kChunk + 8;  // odd numbers of 16 bytes: see fragments.h

struct GradJob {
  WeightGrads grads;
  int log_t, log_a, log_j, log_depth;  // BT, BA, BJ; i at a time inside V, or owned by a block of dS
  int factor_buffers;  // of all chunks of a factor, which then stay for the whole loop, or 2 that take turns
  bool x_dense, dy_dense, T_dense;  // copied 16 bytes at a time

  __host__ __device__ int BT() const { return 1 << log_t; }
  __host__ __device__ int BA() const { return 1 << log_a; }
  __host__ __device__ int BJ() const { return 1 << log_j; }
  __host__ __device__ int depth() const { return 1 << log_depth; }
  __host__ __device__ int dy_stride() const { return BA() + 8; }

  // Numbers of the tiles in shared memory, for BM tokens.
  __host__ __device__ int dy_tile(int BM) const { return BM * depth() * dy_stride(); }
  __host__ __device__ int S_tile() const { return BT() * BJ() * (depth() + 8); }
  __host__ __device__ int z_tile(int BM) const { return BT() * BJ() * (BM * BA() + 8); }
};

// x as [(b,j), k], and dy as [(b,i), a] with `depth` of i.
template <class T>
__device__ __forceinline__ void stage_x(
    const GradJob &job, T *to, int stride, int64_t b0, int64_t j0, int64_t k0, int rows, int log_width) {
  const WeightGrads &g = job.grads;
  stage(to, stride, rows, log_width, job.x_dense, 1, [&](int r) -> Row<T> {
    const int64_t b = b0 + (r >> job.log_j), j = j0 + (r & (job.BJ() - 1)), feature = j * g.q + k0;
    const bool inside = b < g.M && j < g.n;
    const int64_t left = g.q - k0 < g.in - feature ? g.q - k0 : g.in - feature;
    return {static_cast<const T *>(g.x) + (inside ? b * g.in + feature : 0), inside ? clamp(left, g.q) : 0};
  });
}

template <class T>
__device__ __forceinline__ void stage_dy(const GradJob &job, T *to, int64_t b0, int64_t i0, int64_t a0, int BM) {
  const WeightGrads &g = job.grads;
  stage(to, job.dy_stride(), BM << job.log_depth, job.log_a, job.dy_dense, 1, [&](int r) -> Row<T> {
    const int64_t b = b0 + (r >> job.log_depth), i = i0 + (r & (job.depth() - 1)), feature = i * g.p + a0;
    const bool inside = b < g.M && i < g.m;
    const int64_t left = g.p - a0 < g.out - feature ? g.p - a0 : g.out - feature;
    return {static_cast<const T *>(g.dy) + (inside ? b * g.out + feature : 0), inside ? clamp(left, g.p) : 0};
  });
}

// How many tiles of BM tokens are every `splits`-th from `split`.
__host__ __device__ inline int64_t tiles_of(int64_t M, int BM, int64_t split, int64_t splits) {
  const int64_t tiles = blocks_of(M, BM);
  return tiles > split ? blocks_of(tiles - split, splits) : 0;
}

// How a kernel cuts its gradient: the blocks without splits, the tokens of a tile, and how many partial sums those
// blocks make already. No blocks where sizes, alignment or device do not suit it.
struct Cut {
  int64_t blocks;
  int tokens;
  int64_t groups;
};

// The kernels for sm_90a; cudaErrorNotSupported where they have no blocks.
Cut template_grads_sm90_cut(const WeightGrads &grads, const Device &device);
Cut scaler_grads_sm90_cut(const WeightGrads &grads, const Device &device);
cudaError_t template_grads_sm90(const WeightGrads &grads, const Device &device, cudaStream_t stream);
cudaError_t scaler_grads_sm90(const WeightGrads &grads, const Device &device, cudaStream_t stream);

__device__ __forceinline__ void clear(float (&sums)[2][4]) {
#pragma unroll
  for (int e = 0; e < 8; ++e) sums[e / 4][e % 4] = 0;
}

// call(row, column, first, second) for this thread's pairs of neighbours in a sum of 16 x 16.
template <class Call>
__device__ __forceinline__ void each_pair(const float (&sums)[2][4], const Call &call) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int c = 0; c < 2; ++c)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      call(lane / 4 + 8 * half, 8 * c + 2 * (lane % 4), sums[c][2 * half], sums[c][2 * half + 1]);
}

}  // namespace weit::cuda
