// A panel of W from its factors, and its gradient back to them.
//
// Taken apart by pairs, with k counting a convolution's taps too, W is one product with inner size N: W[(i,j), (a,k)] =
// sum_t S[t, (i,j)] T[t, (a,k)]. N is small, so all three kernels are bound by the traffic of W and multiply without
// matrix instructions; each reads or writes W once, VECTOR neighbours (16 bytes) a lane where its rows allow that.
#include <launch.h>

#include "element.h"
#include "kernels.h"

namespace weit::cuda {
namespace {

constexpr int kThreads = 256, kPairs = 4, kTemplates = 8;

template <class T, int VECTOR>
struct Vector {
  float values[VECTOR];
  __device__ explicit Vector(const T *from) {
    const auto pack = *reinterpret_cast<const Pack<T, VECTOR> *>(from);
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) values[e] = widened(pack.values[e]);
  }
  __device__ Vector() : values{} {}
};

// Where a kernel's indices lie in memory; `ak` counts pairs (a,k), `ij` pairs (i,j). Indices are of 32 bits, which
// divide much faster, places of 64.
struct Places {
  Synth job;
  uint32_t n, q, columns, pairs;  // q and columns count taps

  explicit Places(const Synth &job)
      : job(job), n(uint32_t(job.n)), q(uint32_t(job.q * job.taps)), columns(uint32_t(job.p) * q),
        pairs(uint32_t(job.m) * n) {}

  __device__ int64_t scaler_at(uint32_t t, uint32_t ij) const {
    return t * job.S_t + ij / n * job.S_i + ij % n * job.S_j;
  }
  __device__ int64_t template_at(uint32_t t, uint32_t ak) const {
    return t * job.T_t + ak / q * job.T_a + ak % q * job.T_k;
  }

  // -1 where the ragged edges of W cut the element off.
  __device__ int64_t weight_at(uint32_t ij, uint32_t ak) const {
    const uint32_t i = ij / n, j = ij % n, a = ak / q, k = ak % q, taps = uint32_t(job.taps);
    const int64_t row_size = job.in * job.taps;
    const int64_t row = job.interleaved ? a * job.m + i : i * job.p + a;
    const int64_t column = job.interleaved ? (k / taps * job.n + j) * taps + k % taps : int64_t(j) * q + k;
    return ij < pairs && row < job.out && column < row_size ? row * row_size + column : -1;
  }
};

// A thread owns VECTOR columns (a,k) for all pairs (i,j) of its block, kPairs at a time.
struct WeightJob {
  Places at;
  uint32_t pairs_a_block;
};

template <class T, int VECTOR>
__global__ void __launch_bounds__(kThreads) weight(const __grid_constant__ WeightJob job) {
  const Places &at = job.at;
  const T *templates = static_cast<const T *>(at.job.T), *scalers = static_cast<const T *>(at.job.S);
  const uint32_t ak = (blockIdx.x * kThreads + threadIdx.x) * VECTOR;
  if (ak >= at.columns) return;
  const uint32_t first = blockIdx.y * job.pairs_a_block, end = first + job.pairs_a_block;
  for (uint32_t ij = first; ij < end && ij < at.pairs; ij += kPairs) {
    float sums[kPairs][VECTOR] = {};
    for (uint32_t t = 0; t < at.job.N; ++t) {
      const Vector<T, VECTOR> right(templates + at.template_at(t, ak));
#pragma unroll
      for (int r = 0; r < kPairs; ++r) {
        const float left = ij + r < at.pairs ? widened(scalers[at.scaler_at(t, ij + r)]) : 0;
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) sums[r][e] += left * right.values[e];
      }
    }
#pragma unroll
    for (int r = 0; r < kPairs; ++r) {
      const int64_t place = at.weight_at(ij + r, ak);
      if (place < 0) continue;
      Pack<T, VECTOR> pack;
#pragma unroll
      for (int e = 0; e < VECTOR; ++e) narrow(sums[r][e], pack.values[e]);
      *reinterpret_cast<Pack<T, VECTOR> *>(static_cast<T *>(at.job.W) + place) = pack;
    }
  }
}

struct GradJob {
  Places at;
  const void *dW;
  float *parts;
  uint32_t share;  // pairs, or columns, that one partial sum takes
};

// parts[split, t, (a,k)] = sum over a share of the pairs: a thread owns VECTOR columns of kTemplates templates.
template <class T, int VECTOR>
__global__ void __launch_bounds__(kThreads) template_grads(const __grid_constant__ GradJob job) {
  const Places &at = job.at;
  const T *dW = static_cast<const T *>(job.dW), *scalers = static_cast<const T *>(at.job.S);
  const uint32_t ak = (blockIdx.x * kThreads + threadIdx.x) * VECTOR, t0 = blockIdx.z * kTemplates;
  if (ak >= at.columns) return;
  float sums[kTemplates][VECTOR] = {};
  const uint32_t first = blockIdx.y * job.share, end = first + job.share;
  for (uint32_t ij = first; ij < end && ij < at.pairs; ++ij) {
    const int64_t place = at.weight_at(ij, ak);
    if (place < 0) continue;
    const Vector<T, VECTOR> right(dW + place);
#pragma unroll
    for (int t = 0; t < kTemplates; ++t) {
      const float left = t0 + t < at.job.N ? widened(scalers[at.scaler_at(t0 + t, ij)]) : 0;
#pragma unroll
      for (int e = 0; e < VECTOR; ++e) sums[t][e] += left * right.values[e];
    }
  }
#pragma unroll
  for (int t = 0; t < kTemplates; ++t)
    if (t0 + t < at.job.N)
#pragma unroll
      for (int e = 0; e < VECTOR; ++e)
        job.parts[(blockIdx.y * at.job.N + t0 + t) * at.columns + ak + e] = sums[t][e];
}

// parts[split, t, (i,j)] = sum over a share of the columns: a warp owns kPairs pairs of kTemplates templates.
template <class T, int VECTOR>
__global__ void __launch_bounds__(kThreads) scaler_grads(const __grid_constant__ GradJob job) {
  static_assert(kPairs * kTemplates == 32, "one sum for each lane");
  const Places &at = job.at;
  const T *dW = static_cast<const T *>(job.dW), *templates = static_cast<const T *>(at.job.T);
  const int lane = threadIdx.x % 32;
  const uint32_t ij = (blockIdx.x * (kThreads / 32) + threadIdx.x / 32) * kPairs, t0 = blockIdx.z * kTemplates;
  if (ij >= at.pairs) return;
  float sums[32] = {};
  const uint32_t first = blockIdx.y * job.share, end = first + job.share;
  for (uint32_t ak = first + lane * VECTOR; ak < end && ak < at.columns; ak += 32 * VECTOR) {
    Vector<T, VECTOR> left[kPairs];
#pragma unroll
    for (int r = 0; r < kPairs; ++r)
      if (const int64_t place = at.weight_at(ij + r, ak); place >= 0) left[r] = Vector<T, VECTOR>(dW + place);
#pragma unroll
    for (int t = 0; t < kTemplates; ++t) {
      if (t0 + t >= at.job.N) break;
      const Vector<T, VECTOR> right(templates + at.template_at(t0 + t, ak));
#pragma unroll
      for (int r = 0; r < kPairs; ++r)
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) sums[t * kPairs + r] += left[r].values[e] * right.values[e];
    }
  }
  const float sum = sum_for_each_lane(sums, lane);
  const uint32_t t = t0 + lane / kPairs, pair = ij + lane % kPairs;
  if (t < at.job.N && pair < at.pairs) job.parts[(blockIdx.y * at.job.N + t) * at.pairs + pair] = sum;
}

struct SumJob {
  const float *parts;
  float *to;
  int64_t count, splits;
};

// The partial sums, always in the same order.
__global__ void __launch_bounds__(kThreads) add_parts(const __grid_constant__ SumJob job) {
  const int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= job.count) return;
  float sum = 0;
  for (int64_t split = 0; split < job.splits; ++split) sum += job.parts[split * job.count + e];
  job.to[e] += sum;
}

// How many shares of `size`, multiples of `unit`, make about one block a processor from `blocks` without shares.
struct Shares {
  int64_t share, count;
  Shares(int64_t size, int64_t unit, int64_t blocks, int processors) {
    const int64_t units = blocks_of(size, unit), wanted = blocks_of(processors, blocks);
    share = blocks_of(units, wanted < units ? wanted : units) * unit;
    count = blocks_of(size, share);
  }
};

bool vectors(const Synth &job, const void *W, int item) {
  const int64_t count = 16 / item;
  const auto whole = [count](int64_t value) { return value % count == 0; };
  const bool aligned = (reinterpret_cast<uintptr_t>(job.T) | reinterpret_cast<uintptr_t>(W)) % 16 == 0;
  return aligned && !job.interleaved && job.T_k == 1 && whole(job.T_t) && whole(job.T_a) && whole(job.q * job.taps) &&
         whole(job.in * job.taps);
}

template <class T, int VECTOR>
struct Kernels {
  static int64_t column_blocks(const Places &at) { return blocks_of(at.columns, VECTOR * kThreads); }
  static int64_t pair_blocks(const Places &at) { return blocks_of(at.pairs, kPairs * (kThreads / 32)); }
  static int64_t template_blocks(const Places &at) { return blocks_of(at.job.N, kTemplates); }

  static Shares template_shares(const Places &at, int processors) {
    return {at.pairs, 1, column_blocks(at) * template_blocks(at), processors};
  }
  static Shares scaler_shares(const Places &at, int processors) {
    return {at.columns, 32 * VECTOR, pair_blocks(at) * template_blocks(at), processors};
  }

  static cudaError_t weight(const Places &at, const Device &device, cudaStream_t stream) {
    const Shares shares(at.pairs, kPairs, column_blocks(at), 4 * device.processors);  // four blocks fit a processor
    const Grid grid{dim3(unsigned(column_blocks(at)), unsigned(shares.count)), kThreads, 0};
    return launch(cuda::weight<T, VECTOR>, grid, stream, WeightJob{at, uint32_t(shares.share)});
  }

  static int64_t scratch(const SynthGrads &job, const Device &device) {
    const Places at(job.forward);
    const int64_t dT = job.dT ? template_shares(at, device.processors).count * at.columns : 0;
    const int64_t dS = job.dS ? scaler_shares(at, device.processors).count * at.pairs : 0;
    return 4 * at.job.N * (dT > dS ? dT : dS);  // one after the other
  }

  static cudaError_t grads(const SynthGrads &job, const Device &device, cudaStream_t stream) {
    const Places at(job.forward);
    float *parts = static_cast<float *>(job.scratch);
    const auto one = [&](auto kernel, const Shares &shares, int64_t blocks, int64_t count, float *to) {
      if (!to) return cudaSuccess;
      const Grid grid{dim3(unsigned(blocks), unsigned(shares.count), unsigned(template_blocks(at))), kThreads, 0};
      const GradJob part{at, job.dW, parts, uint32_t(shares.share)};
      if (const auto error = launch(kernel, grid, stream, part)) return error;
      const Grid sums{dim3(unsigned(blocks_of(count, kThreads))), kThreads, 0};
      return launch(add_parts, sums, stream, SumJob{parts, to, count, shares.count});
    };
    if (job.scratch_bytes < scratch(job, device)) return cudaErrorInvalidValue;
    const Shares by_pairs = template_shares(at, device.processors), by_columns = scaler_shares(at, device.processors);
    const int64_t N = at.job.N;
    if (const auto error = one(template_grads<T, VECTOR>, by_pairs, column_blocks(at), N * at.columns, job.dT))
      return error;
    return one(scaler_grads<T, VECTOR>, by_columns, pair_blocks(at), N * at.pairs, job.dS);
  }
};

cudaError_t check(const Synth &job, Device &device) {
  const bool small = job.m * job.n < INT32_MAX && job.p * job.q * job.taps < INT32_MAX;
  return small ? current_device(device) : cudaErrorNotSupported;
}

// call(kernels) with those for an element type and alignment.
template <class Call>
auto with_kernels(const Synth &job, const void *W, const Call &call) {
  const bool dense = vectors(job, W, job.element == kFloat ? 4 : 2);
  if (job.element == kFloat) return dense ? call(Kernels<float, 4>()) : call(Kernels<float, 1>());
  if (job.element == kHalf) return dense ? call(Kernels<Half, 8>()) : call(Kernels<Half, 1>());
  return dense ? call(Kernels<BFloat16, 8>()) : call(Kernels<BFloat16, 1>());
}

}  // namespace

cudaError_t synth(const Synth &job, cudaStream_t stream) {
  Device device;
  if (const auto error = check(job, device)) return error;
  return with_kernels(job, job.W, [&](auto kernels) { return kernels.weight(Places(job), device, stream); });
}

int64_t synth_grads_scratch(const SynthGrads &job) {
  Device device;
  if (check(job.forward, device)) return 0;
  return with_kernels(job.forward, job.dW, [&](auto kernels) { return kernels.scratch(job, device); });
}

cudaError_t synth_grads(const SynthGrads &job, cudaStream_t stream) {
  Device device;
  if (const auto error = check(job.forward, device)) return error;
  return with_kernels(job.forward, job.dW, [&](auto kernels) { return kernels.grads(job, device, stream); });
}

}  // namespace weit::cuda
