// dT of weight_grads.cu on sm_90a: dT[(t,a), k] = sum_{b,j} V[(t,a), (b,j)] x[(b,j), k] and V = sum_i S dy on `wgmma`.
//
// A block of three warpgroups owns 64 template rows and COLUMNS of k, and sums over every `splits`-th tile of tokens.
// One thread of the third group copies x and dy of a tile into a ring of stages; the other two groups, TEMPLATES
// templates each, read the same stages. For 8 of (b,j) at a time V is a product [a, i] x [i, (t,b,j)], whose left
// operand is dy as it lies, transposed. What it leaves with a thread is, for each template, half of the left operand of
// a product with 16 rows of x, as they lie: so V is rounded where it is and never leaves its registers. With fewer than
// 8 scaler columns several tokens share the 8, and S has zeros where their tokens differ.
//
// A token and a scaler column take TEMPLATES (m + COLUMNS) multiply-adds of each template row.
#include <hopper.h>
#include <wgmma.h>

#include "weight_grads.h"

namespace weit::cuda {
namespace {

constexpr int kConsumers = 256, kAllThreads = kConsumers + 128;
constexpr int kRows = 64;            // of templates
constexpr int kStageRows = 64;       // of x, unless one tile has to have more
constexpr int kMostStages = 8, kLeastStages = 2;
constexpr int kBarrierBytes = 8 * 2 * kMostStages;

struct Job {
  TensorMap x, dy;  // axes (k, j, b) and (a, i, b)
  WeightGrads grads;
  int scalers, scaler_rows;  // n and m, rounded up
  int tokens;                // of a tile
  int units, inner_steps;    // 8 of (b,j) until dy changes, and how often 16 of (b,i) make V of one of them
  int stages, x_bytes, stage_bytes, S_bytes;
};

template <class E, int TEMPLATES, int COLUMNS>
struct Tile {
  using Element = E;
  static constexpr int kTemplates = TEMPLATES, kColumns = COLUMNS;
  static constexpr int kSStep = TEMPLATES * 8 * 16;  // numbers of S for 16 of (b,i)
};

// What a block owns: of dT, and of the tokens.
template <class Tile>
struct Place {
  int64_t a0, t0, k0, split;
  int tiles;

  __device__ explicit Place(const Job &job) {
    const WeightGrads &g = job.grads;
    const int64_t a_blocks = blocks_of(g.p, kRows), t_blocks = blocks_of(g.N, 2 * Tile::kTemplates);
    const int64_t k_blocks = blocks_of(g.q, Tile::kColumns);
    int64_t block = blockIdx.x;  // neighbours share their tokens, so most of them come from the L2 cache
    a0 = block % a_blocks * kRows, block /= a_blocks;
    t0 = block % t_blocks * 2 * Tile::kTemplates, block /= t_blocks;
    k0 = block % k_blocks * Tile::kColumns, split = block / k_blocks;
    tiles = int(tiles_of(g.M, job.tokens, split, g.splits.dT));
  }
};

// Where everything lies in shared memory, and the barriers: a stage is full when its bytes have arrived, and empty
// when every consuming warp is done with it. Tile i is in stage i % stages.
struct Shared {
  char *stages, *S;
  uint64_t *full, *empty;

  __device__ explicit Shared(const Job &job) {
    stages = shared_memory();
    S = stages + job.stages * job.stage_bytes;
    full = reinterpret_cast<uint64_t *>(S + 2 * job.S_bytes);
    empty = full + kMostStages;
  }
};

template <class Tile>
__device__ __forceinline__ void produce(const Job &job, const Shared &shared, const Place<Tile> &place) {
  for (int tile = 0; tile < place.tiles; ++tile) {
    const int stage = tile % job.stages;
    const int token = int((place.split + tile * job.grads.splits.dT) * job.tokens);
    char *to = shared.stages + stage * job.stage_bytes;
    uint64_t *full = shared.full + stage;
    barrier_wait(shared.empty + stage, tile / job.stages % 2 ^ 1);
    barrier_expect(full, job.stage_bytes);
    load_box(to + job.x_bytes, job.dy, full, int(place.a0), 0, token);
    for (int k = 0; k < Tile::kColumns; k += 64)
      load_box(to + k / 64 * job.tokens * job.scalers * 128, job.x, full, int(place.k0) + k, 0, token);
  }
}

// S of a warpgroup's templates from t0 on, as right operands of V, 16 of (b,i) after the other: blocks of 8 of (b,j),
// for one template, x 8 of (b,i).
template <class Tile>
__device__ __forceinline__ void load_scalers(const Job &job, char *to, int64_t t0) {
  using E = typename Tile::Element;
  const WeightGrads &g = job.grads;
  for (int index = threadIdx.x % 128; index < job.S_bytes / 2; index += 128) {
    const int step = index / Tile::kSStep;
    const int inner = step % job.inner_steps * 16 + index / 64 % 2 * 8 + index % 8;
    const int column = step / job.inner_steps * 8 + index / 8 % 8;
    const int64_t t = t0 + index / 128 % Tile::kTemplates;
    const int i = inner % job.scaler_rows, j = column % job.scalers;
    E value;
    narrow(0, value);
    if (inner / job.scaler_rows == column / job.scalers && t < g.N && i < g.m && j < g.n)
      value = static_cast<const E *>(g.S)[t * g.S_t + i * g.S_i + j * g.S_j];
    reinterpret_cast<E *>(to)[index] = value;
  }
}

template <class Tile>
__device__ __forceinline__ void consume(const Job &job, const Shared &shared, const Place<Tile> &place) {
  using E = typename Tile::Element;
  const WeightGrads &g = job.grads;
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int64_t t0 = place.t0 + group * Tile::kTemplates;
  char *const scalers = shared.S + group * job.S_bytes;
  load_scalers<Tile>(job, scalers, t0);
  show_to_products();
  sync_threads(1, kConsumers);

  const int rows = job.tokens * job.scalers;
  const uint64_t S = blocked_operand(scalers);
  float sum[Tile::kTemplates][Tile::kColumns / 8][4] = {}, v[2][Tile::kTemplates][4];
  uint32_t left[Tile::kTemplates][4];
  for (int tile = 0; tile < place.tiles; ++tile) {
    const int stage = tile % job.stages;
    const char *const at = shared.stages + stage * job.stage_bytes;
    barrier_wait(shared.full + stage, tile / job.stages % 2);
    uint64_t x = swizzled_transpose(at, rows * 128), dy = swizzled_transpose(at + job.x_bytes, 0);
    for (int row = 0, unit = 0; row < rows; row += 16, x += 128) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        for (int step = 0; step < job.inner_steps; ++step) {
          products_begin();
          multiply_shared_at<E>(
              v[half], dy + 128 * step, S + (unit * job.inner_steps + step) * (Tile::kSStep / 8), step > 0);
          products_end();
        }
        if (++unit == job.units) unit = 0, dy += 128 * job.inner_steps;
      }
      products_wait<0>();  // for those with the 16 rows of x before, too
      if (row == 0 && tile && lane == 0) barrier_arrive(shared.empty + (tile - 1) % job.stages);
#pragma unroll
      for (auto &of_template : sum) completed(of_template);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        completed(v[half]);
#pragma unroll
        for (int t = 0; t < Tile::kTemplates; ++t)
#pragma unroll
          for (int down = 0; down < 2; ++down)
            left[t][2 * half + down] = packed<E>(v[half][t][2 * down], v[half][t][2 * down + 1]);
      }
      products_begin();
#pragma unroll
      for (int t = 0; t < Tile::kTemplates; ++t) multiply_left_bt<E>(sum[t], left[t], x);
      products_end();
    }
  }
  products_wait<0>();
#pragma unroll
  for (auto &of_template : sum) completed(of_template);

#pragma unroll
  for (int t = 0; t < Tile::kTemplates; ++t)
#pragma unroll
    for (int octet = 0; octet < Tile::kColumns / 8; ++octet)
#pragma unroll
      for (int down = 0; down < 2; ++down) {
        const int64_t a = place.a0 + 16 * warp + lane / 4 + 8 * down, k = place.k0 + 8 * octet + lane % 4 * 2;
        if (t0 + t >= g.N || a >= g.p || k >= g.q) continue;  // q is even
        float *to = g.dT + ((place.split * g.N + t0 + t) * g.p + a) * g.q + k;
        to[0] = sum[t][octet][2 * down], to[1] = sum[t][octet][2 * down + 1];
      }
}

template <class Tile>
__global__ void __launch_bounds__(WEIT_SM90A_THREADS(kAllThreads), 1) kernel(const __grid_constant__ Job job) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  const Shared shared(job);
  const Place<Tile> place(job);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < job.stages; ++stage) {
      barrier_init(shared.full + stage, 1);
      barrier_init(shared.empty + stage, kConsumers / 32);
    }
    barriers_ready();
  }
  __syncthreads();
  if (threadIdx.x >= kConsumers) {
    fewer_registers<24>();
    if (threadIdx.x == kConsumers) produce(job, shared, place);
  } else {
    more_registers<240>();
    consume(job, shared, place);
  }
#endif
}

struct Shape {
  int templates, columns;  // of a warpgroup
};
constexpr Shape kShapes[] = {{2, 128}, {4, 64}, {2, 64}, {1, 128}};

template <class E>
auto kernel_of(const Shape &shape) {
  return shape.templates == 4   ? kernel<Tile<E, 4, 64>>
         : shape.templates == 1 ? kernel<Tile<E, 1, 128>>
         : shape.columns == 64  ? kernel<Tile<E, 2, 64>>
                                : kernel<Tile<E, 2, 128>>;
}

int64_t blocks_of_shape(const WeightGrads &g, const Shape &shape) {
  return blocks_of(g.p, kRows) * blocks_of(g.N, 2 * shape.templates) * blocks_of(g.q, shape.columns);
}

struct Plan {
  Job job;
  void (*function)(Job);
  int64_t blocks;  // without splits; none: no kernel
  int shared_bytes;
};

Plan plan(const WeightGrads &g, const Device &device) {
  Plan made{};
  // What copies of boxes need: dense rows, each at a multiple of 16 bytes, and boxes of 256 at most. And where a block
  // would use half of its tile or less, the other kernel is as fast.
  if (g.in != g.n * g.q || g.out != g.m * g.p || g.q % 8 || g.p % 8) return made;
  if (!vectors_aligned(g.x) || !vectors_aligned(g.dy)) return made;
  if (g.p <= 32 || g.q <= 32 || g.n > 256 || g.m > 256 || g.M > INT32_MAX - 256) return made;

  Job &job = made.job;
  job.grads = g;
  const auto rounded = [](int64_t size, int to) { return int(blocks_of(size, to)) * to; };
  job.scalers = g.n > 4 ? rounded(g.n, 8) : g.n > 2 ? 4 : int(g.n);
  const int shared_tokens = job.scalers < 8 ? 8 / job.scalers : 1;  // by 8 of (b,j)
  job.scaler_rows = rounded(g.m, shared_tokens > 1 ? 8 : 16);
  job.units = job.scalers < 8 ? 1 : job.scalers / 8;
  job.inner_steps = shared_tokens * job.scaler_rows / 16;

  const auto work = [&](const Shape &shape) {
    return blocks_of_shape(g, shape) * shape.templates * (16 * job.inner_steps + shape.columns);
  };
  Shape best = kShapes[0];
  for (const Shape &shape : kShapes)
    if (work(shape) < work(best)) best = shape;
  job.S_bytes = job.units * job.inner_steps * best.templates * 8 * 16 * 2;
  const int64_t left = device.shared_bytes - kBarrierBytes - 2 * job.S_bytes;
  const auto fits = [&](int tokens) {
    job.tokens = tokens;
    job.x_bytes = tokens * job.scalers * best.columns * 2;
    job.stage_bytes = job.x_bytes + tokens * job.scaler_rows * kRows * 2;
    return kLeastStages * job.stage_bytes <= left;
  };
  int tokens = job.scalers % 16 == 0 ? 1 : job.scalers % 8 == 0 ? 2 : 16 / job.scalers;  // for 16 of (b,j)
  while (2 * tokens * job.scalers <= kStageRows && fits(2 * tokens)) tokens *= 2;
  if (!fits(tokens)) return made;
  job.stages = int(min(left / job.stage_bytes, int64_t(kMostStages)));
  made.shared_bytes = job.stages * job.stage_bytes + 2 * job.S_bytes + kBarrierBytes;

  const Axis x_axes[] = {{g.q, 1, 64}, {g.n, g.q, job.scalers}, {g.M, g.in, job.tokens}};
  const Axis dy_axes[] = {{g.p, 1, kRows}, {g.m, g.p, job.scaler_rows}, {g.M, g.out, job.tokens}};
  if (make_tensor_map(job.x, g.element, g.x, x_axes) || make_tensor_map(job.dy, g.element, g.dy, dy_axes)) return made;
  made.function = g.element == kHalf ? kernel_of<Half>(best) : kernel_of<BFloat16>(best);
  if (built_for_sm90a(made.function, kAllThreads)) made.blocks = blocks_of_shape(g, best);
  return made;
}

}  // namespace

Cut template_grads_sm90_cut(const WeightGrads &g, const Device &device) {
  const Plan made = plan(g, device);
  return {made.blocks, made.job.tokens, 1};
}

cudaError_t template_grads_sm90(const WeightGrads &g, const Device &device, cudaStream_t stream) {
  const Plan made = plan(g, device);
  if (made.blocks == 0) return cudaErrorNotSupported;
  const int64_t blocks = made.blocks * g.splits.dT;
  if (g.splits.dT < 1 || blocks > INT32_MAX) return cudaErrorInvalidValue;
  return launch(made.function, {dim3(unsigned(blocks)), kAllThreads, made.shared_bytes}, stream, made.job);
}

}  // namespace weit::cuda
