// dS of weight_grads.cu on sm_90a: dS[(t,j), i] = sum_{b,a} Z[(b,j), (t,a)] dy[b, i, a] with Z = sum_k x T on `wgmma`.
//
// A block of three warpgroups owns four templates, 64 template rows, up to 16 scaler columns and ROWS scaler rows, and
// sums over every `splits`-th tile of tokens. Its templates stay in shared memory. One thread of the third group copies
// dy of a tile, and x, 64 of k at a time, into a ring of stages. The other two groups take 32 template rows each. Z of
// 64 of (b,j) is a product over all k. What it leaves with a warp are left operands, 16 of (b,j) x 16 of a, of products
// with dy of the warp's own tokens; those are `mma.sync`, since the four warps of a `wgmma` share a right operand. A
// warp with several tokens takes one after the other, with zeros in the rows of the rest. So neither Z nor the sums
// leave their registers; at the end the sums of all warps are added up in shared memory, in a fixed order.
//
// A token takes N n p q multiply-adds for Z, as many as dT, and N n p m for the second product, or 16 / n times as many
// where n is less than 16.
#include <hopper.h>
#include <wgmma.h>

#include "weight_grads.h"

namespace weit::cuda {
namespace {

constexpr int kConsumers = 256, kAllThreads = kConsumers + 128;
constexpr int kTemplates = 4, kRows = 32, kColumns = kTemplates * kRows;  // of a warpgroup
constexpr int kZRows = 64, kDepth = 64;
constexpr int kStageBytes = kZRows * kDepth * 2, kTBytes = 2 * kColumns * kDepth * 2;  // for 64 of k
constexpr int kMostStages = 8, kLeastStages = 3;
constexpr int kBarrierBytes = 8 * (2 * kMostStages + 5);

struct Job {
  TensorMap x, T, dy;  // axes (k, j, b), (k, a, t) and (a, i, b)
  WeightGrads grads;
  int scalers, tokens;  // of a tile
  int depth_steps, stages, dy_bytes;
};

// What a block owns: of dS, and of the tokens.
struct Place {
  int64_t a_block, t0, j0, i0, split, splits;
  int tiles;

  __device__ Place(const Job &job, int rows) {
    const WeightGrads &g = job.grads;
    const int64_t a_blocks = blocks_of(g.p, 2 * kRows), t_blocks = blocks_of(g.N, kTemplates);
    const int64_t j_blocks = blocks_of(g.n, job.scalers), i_blocks = blocks_of(g.m, rows);
    int64_t block = blockIdx.x;  // neighbours share their tokens, so most of them come from the L2 cache
    a_block = block % a_blocks, block /= a_blocks;
    t0 = block % t_blocks * kTemplates, block /= t_blocks;
    j0 = block % j_blocks * job.scalers, block /= j_blocks;
    i0 = block % i_blocks * rows, split = block / i_blocks, splits = g.splits.dS / a_blocks;
    tiles = int(tiles_of(g.M, job.tokens, split, splits));
  }
};

// Where everything lies in shared memory, and the barriers: a stage is full when its bytes have arrived, and empty when
// every consuming warp is done with it. Step i of x is in stage i % stages, dy of tile i in the buffer i % 2.
struct Shared {
  char *stages, *T, *dy;
  uint64_t *full, *empty, *dy_full, *dy_empty, *T_full;

  __device__ explicit Shared(const Job &job) {
    stages = shared_memory();
    T = stages + job.stages * kStageBytes;
    dy = T + job.depth_steps * kTBytes;
    full = reinterpret_cast<uint64_t *>(dy + 2 * job.dy_bytes);
    empty = full + kMostStages, dy_full = empty + kMostStages, dy_empty = dy_full + 2, T_full = dy_empty + 2;
  }
};

__device__ __forceinline__ void produce(const Job &job, const Shared &shared, const Place &place) {
  const int a0 = int(place.a_block) * 2 * kRows;
  barrier_expect(shared.T_full, job.depth_steps * kTBytes);
  for (int part = 0; part < 2 * job.depth_steps; ++part)
    load_box(
        shared.T + part * (kTBytes / 2), job.T, shared.T_full, part / 2 * kDepth, a0 + part % 2 * kRows, int(place.t0));
  for (int tile = 0, step = 0; tile < place.tiles; ++tile) {
    const int token = int((place.split + tile * place.splits) * job.tokens), buffer = tile % 2;
    barrier_wait(shared.dy_empty + buffer, tile / 2 % 2 ^ 1);
    barrier_expect(shared.dy_full + buffer, job.dy_bytes);
    load_box(shared.dy + buffer * job.dy_bytes, job.dy, shared.dy_full + buffer, a0, int(place.i0), token);
    for (int k = 0; k < job.depth_steps; ++k, ++step) {
      const int stage = step % job.stages;
      barrier_wait(shared.empty + stage, step / job.stages % 2 ^ 1);
      barrier_expect(shared.full + stage, kStageBytes);
      load_box(shared.stages + stage * kStageBytes, job.x, shared.full + stage, k * kDepth, int(place.j0), token);
    }
  }
}

// Z of a tile, over all k.
template <class E>
__device__ __forceinline__ void multiply_templates(
    float (&z)[kColumns / 8][4], const Job &job, const Shared &shared, const char *T, int &next) {
  const auto release = [&](int step) {
    if (threadIdx.x % 32 == 0) barrier_arrive(shared.empty + step % job.stages);
  };
  for (int k = 0; k < job.depth_steps; ++k, ++next, T += kTBytes) {
    const int stage = next % job.stages;
    barrier_wait(shared.full + stage, next / job.stages % 2);
    const uint64_t a = swizzled_operand(shared.stages + stage * kStageBytes), b = swizzled_operand(T);
    products_begin();
#pragma unroll
    for (int step = 0; step < kDepth / 16; ++step) multiply_shared<E>(z, a + 2 * step, b + 2 * step, k + step > 0);
    products_end();
    if (k) {
      products_wait<1>();
      release(next - 1);
    }
  }
  products_wait<0>();
  completed(z);
  release(next - 1);
}

// sums += Z dy for the tokens of this warp, whose dy is at `dy`: rows (b,i) of 64 template rows.
template <class E, int ROWS>
__device__ __forceinline__ void multiply_outputs(
    float (&sums)[kTemplates][ROWS / 8][4], const float (&z)[kColumns / 8][4], const Job &job, const char *dy) {
  const int lane = threadIdx.x % 32, row = lane % 8 + lane / 16 * 8;
  const int vector = threadIdx.x / 128 * (kRows / 8) + lane / 8 % 2;
  uint32_t left[kColumns / 16][4];
#pragma unroll
  for (int c = 0; c < kColumns / 16; ++c)
#pragma unroll
    for (int e = 0; e < 4; ++e) left[c][e] = packed<E>(z[2 * c + e / 2][e % 2 * 2], z[2 * c + e / 2][e % 2 * 2 + 1]);

  for (int token = 0; token < 16 / job.scalers; ++token, dy += ROWS * 128) {
    const bool upper = lane / 4 / job.scalers == token, lower = (lane / 4 + 8) / job.scalers == token;
#pragma unroll
    for (int a = 0; a < kRows / 16; ++a)
#pragma unroll
      for (int i = 0; i < ROWS / 16; ++i) {
        uint32_t right[4];
        load_matrices(right, dy + (16 * i + row) * 128 + ((vector + 2 * a) ^ (row % 8)) * 16);
#pragma unroll
        for (int t = 0; t < kTemplates; ++t) {
          const auto &all = left[t * (kRows / 16) + a];
          const uint32_t own[] = {upper ? all[0] : 0, lower ? all[1] : 0, upper ? all[2] : 0, lower ? all[3] : 0};
          multiply_add<E>(sums[t][2 * i], own, right[0], right[1]);
          multiply_add<E>(sums[t][2 * i + 1], own, right[2], right[3]);
        }
      }
  }
}

// The sums of all warps and, of each, of all tokens, to dS. What else was in shared memory is not needed any more.
template <int ROWS>
__device__ __forceinline__ void store_sums(
    const float (&sums)[kTemplates][ROWS / 8][4], const Job &job, const Place &place) {
  const WeightGrads &g = job.grads;
  float *const all = reinterpret_cast<float *>(shared_memory());  // [warp][t][16 of (b,j)][i]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  sync_threads(1, kConsumers);
#pragma unroll
  for (int t = 0; t < kTemplates; ++t)
#pragma unroll
    for (int octet = 0; octet < ROWS / 8; ++octet)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = lane / 4 + e / 2 * 8, i = 8 * octet + lane % 4 * 2 + e % 2;
        all[((warp * kTemplates + t) * 16 + row) * ROWS + i] = sums[t][octet][e];
      }
  sync_threads(1, kConsumers);

  const int64_t part = place.split * blocks_of(g.p, 2 * kRows) + place.a_block;
  for (int index = threadIdx.x; index < kTemplates * ROWS * job.scalers; index += kConsumers) {
    const int j = index % job.scalers, i = index / job.scalers % ROWS, t = index / job.scalers / ROWS;
    if (place.t0 + t >= g.N || place.i0 + i >= g.m || place.j0 + j >= g.n) continue;
    float sum = 0;
    for (int w = 0; w < kConsumers / 32; ++w)
      for (int row = j; row < 16; row += job.scalers) sum += all[((w * kTemplates + t) * 16 + row) * ROWS + i];
    g.dS[((part * g.N + place.t0 + t) * g.m + place.i0 + i) * g.n + place.j0 + j] = sum;
  }
}

template <class E, int ROWS>
__device__ __forceinline__ void consume(const Job &job, const Shared &shared, const Place &place) {
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4;
  float sums[kTemplates][ROWS / 8][4] = {}, z[kColumns / 8][4];
  barrier_wait(shared.T_full, 0);
  for (int tile = 0, step = 0; tile < place.tiles; ++tile) {
    const int buffer = tile % 2;
    multiply_templates<E>(z, job, shared, shared.T + group * (kTBytes / 2), step);
    barrier_wait(shared.dy_full + buffer, tile / 2 % 2);
    const char *dy = shared.dy + buffer * job.dy_bytes + warp * (16 / job.scalers) * (ROWS * 128);
    multiply_outputs<E, ROWS>(sums, z, job, dy);
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(shared.dy_empty + buffer);
  }
  store_sums<ROWS>(sums, job, place);
}

template <class E, int ROWS>
__global__ void __launch_bounds__(WEIT_SM90A_THREADS(kAllThreads), 1) kernel(const __grid_constant__ Job job) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  const Shared shared(job);
  const Place place(job, ROWS);
  if (threadIdx.x == 0) {
    for (int i = 0; i < job.stages; ++i) barrier_init(shared.full + i, 1);
    for (int i = 0; i < job.stages; ++i) barrier_init(shared.empty + i, kConsumers / 32);
    for (int i = 0; i < 2; ++i) barrier_init(shared.dy_full + i, 1);
    for (int i = 0; i < 2; ++i) barrier_init(shared.dy_empty + i, kConsumers / 32);
    barrier_init(shared.T_full, 1);
    barriers_ready();
  }
  __syncthreads();
  if (threadIdx.x >= kConsumers) {
    fewer_registers<24>();
    if (threadIdx.x == kConsumers) produce(job, shared, place);
  } else {
    more_registers<240>();
    consume<E, ROWS>(job, shared, place);
  }
#endif
}

template <class E>
auto kernel_of(int rows) {
  return rows == 16 ? kernel<E, 16> : rows == 32 ? kernel<E, 32> : kernel<E, 48>;
}

struct Plan {
  Job job;
  void (*function)(Job);
  int64_t blocks;  // without splits; none: no kernel
  int shared_bytes;
};

Plan plan(const WeightGrads &g, const Device &device) {
  Plan made{};
  // What copies of boxes need: dense rows, each at a multiple of 16 bytes. And where a block would use half of its tile
  // or less, the other kernel is as fast.
  if (g.in != g.n * g.q || g.out != g.m * g.p || g.T_k != 1 || g.M > INT32_MAX - kZRows) return made;
  if (!vectors_aligned(g.x) || !vectors_aligned(g.dy) || !vectors_aligned(g.T)) return made;
  for (const int64_t stride : {g.q, g.p, g.T_a, g.T_t})
    if (stride % 8) return made;
  if (g.p <= 32 || g.q <= 32 || g.N <= 2) return made;

  Job &job = made.job;
  job.grads = g;
  // Each block of scaler rows costs all of Z: as few as there can be, and as even. With 64 rows the assembler spills.
  const int rows = int(blocks_of(blocks_of(g.m, blocks_of(g.m, 48)), 16)) * 16;
  job.scalers = g.n > 8 && (g.n - 1) % 16 >= 8 ? 16 : g.n > 4 ? 8 : g.n > 2 ? 4 : 2;
  job.tokens = kZRows / job.scalers;
  job.depth_steps = int(blocks_of(g.q, kDepth));
  job.dy_bytes = job.tokens * rows * 128;
  const int64_t resident = int64_t(job.depth_steps) * kTBytes + 2 * job.dy_bytes + kBarrierBytes;
  const int64_t stages = (device.shared_bytes - resident) / kStageBytes;
  const int sums = kConsumers / 32 * kTemplates * 16 * rows * 4;
  if (stages < kLeastStages || sums > device.shared_bytes) return made;
  job.stages = int(min(stages, int64_t(kMostStages)));
  const int shared_bytes = int(resident) + job.stages * kStageBytes;
  made.shared_bytes = shared_bytes < sums ? sums : shared_bytes;

  const Axis x_axes[] = {{g.q, 1, kDepth}, {g.n, g.q, job.scalers}, {g.M, g.in, job.tokens}};
  const Axis T_axes[] = {{g.q, 1, kDepth}, {g.p, g.T_a, kRows}, {g.N, g.T_t, kTemplates}};
  const Axis dy_axes[] = {{g.p, 1, 2 * kRows}, {g.m, g.p, rows}, {g.M, g.out, job.tokens}};
  if (make_tensor_map(job.x, g.element, g.x, x_axes) || make_tensor_map(job.T, g.element, g.T, T_axes) ||
      make_tensor_map(job.dy, g.element, g.dy, dy_axes))
    return made;
  made.function = g.element == kHalf ? kernel_of<Half>(rows) : kernel_of<BFloat16>(rows);
  if (built_for_sm90a(made.function, kAllThreads))
    made.blocks = blocks_of(g.p, 2 * kRows) * blocks_of(g.N, kTemplates) * blocks_of(g.n, job.scalers) *
                  blocks_of(g.m, rows);
  return made;
}

}  // namespace

Cut scaler_grads_sm90_cut(const WeightGrads &g, const Device &device) {
  const Plan made = plan(g, device);
  return {made.blocks, made.job.tokens, blocks_of(g.p, 2 * kRows)};
}

cudaError_t scaler_grads_sm90(const WeightGrads &g, const Device &device, cudaStream_t stream) {
  const Plan made = plan(g, device);
  if (made.blocks == 0) return cudaErrorNotSupported;
  const int64_t groups = blocks_of(g.p, 2 * kRows), splits = g.splits.dS / groups, blocks = made.blocks * splits;
  if (splits < 1 || g.splits.dS % groups || blocks > INT32_MAX) return cudaErrorInvalidValue;
  return launch(made.function, {dim3(unsigned(blocks)), kAllThreads, made.shared_bytes}, stream, made.job);
}

}  // namespace weit::cuda
