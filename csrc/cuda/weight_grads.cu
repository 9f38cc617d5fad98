// dT and dS by matrix instructions: sizes and launches of two kernels, each one pass over the tokens.
#include "scaler_grads.h"
#include "template_grads.h"

namespace weit::cuda {
namespace {

int log_of(int64_t value, int most) {  // the smallest power of two that holds it, but no more than 2^most
  int log = 0;
  while (log < most && (int64_t(1) << log) < value) ++log;
  return log;
}

struct Plan {
  GradJob job;
  int BJM, shared_bytes;
};

// The largest tiles that fit the device's shared memory, and a factor that stays there if it fits too. At least 16 of
// (t,j) make a matrix instruction; four or more scaler columns keep the tile of dy small.
Plan plan(const WeightGrads &g, const Device &device, bool dT) {
  const auto whole = [](auto... values) { return ((values % 8 == 0) && ...); };
  GradJob job{g};
  job.log_t = log_of(g.N, 3);
  job.log_a = kLogOwned - job.log_t;
  const int least = job.log_t > 2 ? 2 : 4 - job.log_t, log_n = log_of(g.n, 4);
  job.log_j = log_n < least ? least : log_n;
  job.x_dense = vectors_aligned(g.x) && whole(g.q, g.in);
  job.dy_dense = vectors_aligned(g.dy) && whole(g.p, g.out);
  job.T_dense = vectors_aligned(g.T) && g.T_k == 1 && whole(g.T_t, g.T_a, g.q);
  const int most = log_of(g.m, dT ? 5 : 6);
  for (const int BJM : {128, 64})
    for (job.log_depth = most < 4 ? 4 : most;; job.log_depth = 4) {
      const int BM = BJM >> job.log_j;
      const int64_t all = dT ? blocks_of(g.n, job.BJ()) * blocks_of(g.m, job.depth()) : blocks_of(g.q, kChunk);
      for (const int64_t buffers : {all, int64_t(2)}) {
        job.factor_buffers = int(buffers);
        const int64_t factor = buffers * (dT ? job.S_tile() : kOwned * kChunkStride);
        const int64_t tiles =
            dT ? 3 * BJM * kStride + 2 * job.dy_tile(BM) : 2 * BJM * kChunkStride + job.z_tile(BM) + job.dy_tile(BM);
        if (2 * (tiles + factor) <= device.shared_bytes) return {job, BJM, int(2 * (tiles + factor))};
      }
      if (job.log_depth == 4) break;
    }
  return {job, 0, 0};
}

int64_t blocks_without_splits(const GradJob &job, bool dT) {
  const WeightGrads &g = job.grads;
  const int64_t factors = blocks_of(g.p, job.BA()) * blocks_of(g.N, job.BT());
  return factors * (dT ? blocks_of(g.q, kOwned) : blocks_of(g.n, job.BJ()) * blocks_of(g.m, job.depth()));
}

Cut cut(const WeightGrads &g, const Device &device, bool dT) {
  if (device.capability == 90) {
    const Cut sm90 = dT ? template_grads_sm90_cut(g, device) : scaler_grads_sm90_cut(g, device);
    if (sm90.blocks) return sm90;
  }
  const Plan made = plan(g, device, dT);
  if (made.BJM == 0) return {};
  const int64_t groups = dT ? 1 : blocks_of(g.p, made.job.BA());  // blocks of a: each a partial sum of dS
  return {blocks_without_splits(made.job, dT), made.BJM >> made.job.log_j, groups};
}

// As many as fill the processors once, within the memory that they may take.
int64_t splits(const WeightGrads &g, const Device &device, bool dT) {
  constexpr int64_t kMostBytes = 24 << 20;
  const auto [blocks, tokens, groups] = cut(g, device, dT);
  if (blocks == 0) return 1;
  const int64_t bytes = 4 * g.N * (dT ? g.p * g.q : g.m * g.n * groups);
  int64_t count = device.processors / blocks;
  for (const int64_t most : {kMostBytes / bytes, tiles_of(g.M, tokens, 0, 1)})
    if (count > most) count = most;
  return groups * (count < 1 ? 1 : count);
}

template <class T>
cudaError_t run(const WeightGrads &g, const Device &device, cudaStream_t stream, bool dT) {
  if (device.capability == 90) {
    const auto error = dT ? template_grads_sm90(g, device, stream) : scaler_grads_sm90(g, device, stream);
    if (error != cudaErrorNotSupported) return error;
  }
  const Plan made = plan(g, device, dT);
  if (made.BJM == 0) return cudaErrorNotSupported;
  const int64_t groups = dT ? 1 : blocks_of(g.p, made.job.BA()), sums = dT ? g.splits.dT : g.splits.dS;
  const int64_t parts = sums / groups, blocks = blocks_without_splits(made.job, dT) * parts;
  // Splits that were chosen for the other kernel, which then could not run: some sums would be nobody's.
  if (parts < 1 || sums % groups || blocks > INT32_MAX) return cudaErrorInvalidValue;
  const auto large = dT ? template_grads<T, 128> : scaler_grads<T, 128>;
  const auto small = dT ? template_grads<T, 64> : scaler_grads<T, 64>;
  const Grid grid{dim3(unsigned(blocks)), kThreads, made.shared_bytes};
  return launch(made.BJM == 128 ? large : small, grid, stream, made.job);
}

template <class T>
cudaError_t run(const WeightGrads &g, const Device &device, cudaStream_t stream) {
  if (g.dT)
    if (const auto error = run<T>(g, device, stream, true)) return error;
  return g.dS ? run<T>(g, device, stream, false) : cudaSuccess;
}

}  // namespace

Splits weight_grads_splits(const WeightGrads &g) {
  Device device;
  if (current_device(device)) return {1, 1};
  return {splits(g, device, true), splits(g, device, false)};
}

cudaError_t weight_grads(const WeightGrads &g, cudaStream_t stream) {
  Device device;
  if (const auto error = current_device(device)) return error;
  if (g.element == kHalf) return run<Half>(g, device, stream);
  if (g.element == kBFloat16) return run<BFloat16>(g, device, stream);
  return cudaErrorNotSupported;
}

}  // namespace weit::cuda
