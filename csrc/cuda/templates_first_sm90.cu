// templates_first.cu's result on sm_90a: a persistent kernel whose two products both run on `wgmma`.
//
// A block of three warpgroups owns, for 64 tokens at a time, two neighbouring tiles of template rows. Their templates
// and scalers stay in shared memory from one tile of tokens to the next. One thread of the third group copies x[b, j,
// k], one scaler column and 64 of k at a time, into a ring of stages; the other two groups, one for each tile of
// template rows, read the same stages. For each scaler column they multiply x by T over all k, round Z to the operands'
// type where it is (regroup.h) and, whenever 16 of (j,t) are together, multiply it by S. Both sums are registers. So x
// comes from the L2 cache once for 2 ROWS template rows and each TEMPLATES templates; y is written once.
//
// Bytes from the L2 cache, not products, seem to bound it where COLUMNS is small: 8 KiB for 2 COLUMNS x 64 x 64
// products. Where COLUMNS is 96 and there are many scaler columns, an H100 reached 700 TFLOP/s.
#include <hopper.h>
#include <launch.h>
#include <wgmma.h>

#include "regroup.h"
#include "result_sm90.h"
#include "units_sm90.h"

namespace weit::cuda {
namespace {

constexpr int kConsumers = 256, kThreads = kConsumers + 128;
constexpr int kTokens = 64, kDepth = 64;
constexpr int kStageBytes = kTokens * kDepth * 2;
constexpr int kMostStages = 12, kLeastStages = 3;
constexpr int kBarrierBytes = 8 * (2 * kMostStages + 2);

struct Job {
  TensorMap x, T, y;  // axes (k, j, b), (k, a % kPaired, t, a / kPaired) and (a, b, i)
  Chain chain;        // but for the bias
  const void *bias;
  Units units;
  int scaler_steps, template_steps, depth_steps, stages;
  bool y_boxes, y_runs;  // aligned for it
};

template <class E, int TEMPLATES, int ROWS, int SCALER_ROWS>
struct Tile {
  using Element = E;
  using Order = Regroup<TEMPLATES>;
  using Output = Result<E, ROWS, SCALER_ROWS>;
  static constexpr int kTemplates = TEMPLATES, kRows = ROWS, kScalerRows = SCALER_ROWS;  // of a warpgroup
  static constexpr int kColumns = TEMPLATES * ROWS;
  static constexpr int kTBytes = 2 * kColumns * kDepth * 2;  // for both warpgroups, TEMPLATES templates, kDepth of k
  static constexpr int kSBytes = 16 * SCALER_ROWS * 2;       // for 16 of (j,t)
};

// A position in a ring of stages, and the parity of its round.
struct Slot {
  int index = 0;
  uint32_t round = 0;

  __device__ void advance(int stages) {
    if (++index == stages) index = 0, round ^= 1;
  }
};

// Where everything lies in shared memory, and the barriers: a stage is full when its bytes have arrived, and empty
// when every consuming warp is done with it; the templates likewise.
template <class Tile>
struct Shared {
  char *stages, *T, *y, *S, *bias;
  uint64_t *full, *empty, *T_full, *T_empty;

  __device__ explicit Shared(const Job &job) {
    stages = shared_memory();
    T = stages + job.stages * kStageBytes;
    y = T + job.template_steps * job.depth_steps * Tile::kTBytes;
    S = y + job.y_boxes * Tile::Output::kBytes;
    bias = S + job.template_steps * job.scaler_steps * Tile::kSBytes;
    full = reinterpret_cast<uint64_t *>(bias + Tile::Output::kBiasBytes);
    empty = full + kMostStages, T_full = empty + kMostStages, T_empty = T_full + 1;
  }
};

template <class Tile>
__device__ __forceinline__ void produce(const Job &job, const Shared<Tile> &shared) {
  Slot slot;
  uint32_t T_round = 0;
  for (Tiles<Tile> tiles(job.units); tiles.more(); tiles.advance()) {
    if (tiles.opens_place()) {
      barrier_wait(shared.T_empty, T_round ^ 1), T_round ^= 1;
      barrier_expect(shared.T_full, job.template_steps * job.depth_steps * Tile::kTBytes);
      char *to = shared.T;
      for (int t = 0; t < job.template_steps; ++t)
        for (int k = 0; k < job.depth_steps; ++k, to += Tile::kTBytes)
          load_box(to, job.T, shared.T_full, k * kDepth, 0, t * Tile::kTemplates, tiles.a0() / Tile::Order::kPaired);
    }
    for (int step = 0; step < job.scaler_steps; ++step) {
      for (int t = 0; t < job.template_steps; ++t) {
        for (int j = 0; j < Tile::Order::kScalers; ++j) {  // past the last of them x is zero
          for (int k = 0; k < job.depth_steps; ++k, slot.advance(job.stages)) {
            barrier_wait(shared.empty + slot.index, slot.round ^ 1);
            barrier_expect(shared.full + slot.index, kStageBytes);
            load_box(
                shared.stages + slot.index * kStageBytes, job.x, shared.full + slot.index, k * kDepth,
                step * Tile::Order::kScalers + j, tiles.first_token());
          }
        }
      }
    }
  }
}

// S as right operands of the second product, 16 of (j,t) after the other: blocks of 8 scaler rows x 8 inner positions.
template <class Tile>
__device__ __forceinline__ void load_scalers(const Job &job, char *to, int i0) {
  using E = typename Tile::Element;
  const Chain &c = job.chain;
  const int count = job.scaler_steps * job.template_steps * 16 * Tile::kScalerRows;
  for (int index = threadIdx.x; index < count; index += kConsumers) {
    const int step = index / (16 * Tile::kScalerRows), position = index % 8 + index / 64 % 2 * 8;
    const int t = step % job.template_steps * Tile::kTemplates + Tile::Order::inner_template(position);
    const int j = step / job.template_steps * Tile::Order::kScalers + Tile::Order::inner_scaler(position);
    const int i = i0 + index / 128 % (Tile::kScalerRows / 8) * 8 + index / 8 % 8;
    E value;
    narrow(0, value);
    if (t < c.N && j < c.n && i < c.m) value = static_cast<const E *>(c.S)[t * c.S_t + i * c.S_i + j * c.S_j];
    reinterpret_cast<E *>(to)[index] = value;
  }
}

// Z = x T over all k for one scaler column and the templates at T.
template <class Tile>
__device__ __forceinline__ void multiply_templates(
    float (&z)[Tile::kColumns / 8][4], const Job &job, const Shared<Tile> &shared, Slot &slot, const char *T) {
  const auto release = [&](int stage) {
    if (threadIdx.x % 32 == 0) barrier_arrive(shared.empty + stage);
  };
  int previous = 0;
  for (int k = 0; k < job.depth_steps; ++k, T += Tile::kTBytes) {
    barrier_wait(shared.full + slot.index, slot.round);
    const uint64_t a = swizzled_operand(shared.stages + slot.index * kStageBytes), b = swizzled_operand(T);
    products_begin();
#pragma unroll
    for (int step = 0; step < kDepth / 16; ++step)
      multiply_shared<typename Tile::Element>(z, a + 2 * step, b + 2 * step, k + step > 0);
    products_end();
    if (k) {
      products_wait<1>();
      release(previous);
    }
    previous = slot.index;
    slot.advance(job.stages);
  }
  products_wait<0>();
  completed(z);
  release(previous);
}

template <class Tile>
__device__ __forceinline__ void consume(const Job &job, const Shared<Tile> &shared) {
  using E = typename Tile::Element;
  constexpr int kShared = Tile::Order::kScalers;
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  Slot slot;
  uint32_t T_round = 0;
  float sum[Tile::kRows][Tile::kScalerRows / 8][4], z[Tile::kColumns / 8][4];
  uint32_t left[Tile::kRows][4];

  for (Tiles<Tile> tiles(job.units); tiles.more(); tiles.advance()) {
    if (tiles.opens_place()) {
      sync_threads(1, kConsumers);  // nobody reads the scalers before any more
      load_scalers<Tile>(job, shared.S, tiles.i0());
      Tile::Output::load_bias(job.chain, job.bias, shared.bias, tiles.i0(), tiles.a0());
      show_to_products();
      sync_threads(1, kConsumers);
      barrier_wait(shared.T_full, T_round), T_round ^= 1;
    }
    Tile::Output::start(sum, shared.bias, group, lane);
    const char *S = shared.S;
    for (int step = 0; step < job.scaler_steps; ++step) {
      const char *T = shared.T + group * (Tile::kTBytes / 2);
      for (int t = 0; t < job.template_steps; ++t) {
#pragma unroll
        for (int j = 0; j < kShared; ++j) {
          multiply_templates(z, job, shared, slot, T);
          Tile::Order::template put<E, Tile::kRows>(left, z, j);
        }
        products_begin();
#pragma unroll
        for (int a = 0; a < Tile::kRows; ++a) multiply_left<E>(sum[a], left[a], blocked_operand(S));
        products_end();
        products_wait<0>();
#pragma unroll
        for (auto &row : sum) completed(row);
        T += job.depth_steps * Tile::kTBytes, S += Tile::kSBytes;
      }
    }
    if (tiles.ends_place() && lane == 0) barrier_arrive(shared.T_empty);
    if (job.y_boxes) {
      Tile::Output::store(job.y, shared.y, sum, 1, tiles.a0(), tiles.i0(), tiles.first_token());
    } else {
      const int64_t b = tiles.first_token() + warp * 16 + lane / 4;
      store_result<E>(
          job.chain, sum, b, tiles.i0() + lane % 4 * 2, tiles.a0() + group * Tile::kRows, job.y_runs);
    }
  }
  if (threadIdx.x == 0) stores_wait();
}

template <class Tile>
__global__ void __launch_bounds__(WEIT_SM90A_THREADS(kThreads), 1) kernel(const __grid_constant__ Job job) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  const Shared<Tile> shared(job);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < job.stages; ++stage) {
      barrier_init(shared.full + stage, 1);
      barrier_init(shared.empty + stage, kConsumers / 32);
    }
    barrier_init(shared.T_full, 1);
    barrier_init(shared.T_empty, kConsumers / 32);
    barriers_ready();
  }
  __syncthreads();
  if (threadIdx.x >= kConsumers) {
    fewer_registers<24>();
    if (threadIdx.x == kConsumers) produce(job, shared);
  } else {
    more_registers<240>();
    consume(job, shared);
  }
#endif
}

template <class E, int TEMPLATES, int ROWS, int SCALER_ROWS>
cudaError_t run(const Chain &chain, const Device &device, cudaStream_t stream) {
  using Shape = Tile<E, TEMPLATES, ROWS, SCALER_ROWS>;
  using Order = typename Shape::Order;
  if (chain.p % Order::kPaired) return cudaErrorNotSupported;
  const auto steps = [](int64_t size, int step) { return int(blocks_of(size, step)); };
  Job job{};
  job.chain = chain, job.bias = chain.bias, job.chain.bias = nullptr;
  const int token_blocks = steps(chain.M, kTokens), a_blocks = steps(chain.p, 2 * ROWS);
  const int places = a_blocks * steps(chain.m, SCALER_ROWS);
  if (int64_t(token_blocks) * places > INT32_MAX) return cudaErrorNotSupported;
  job.units = units_of(token_blocks, a_blocks, places, device.processors);
  job.scaler_steps = steps(chain.n, Order::kScalers);
  job.template_steps = steps(chain.N, TEMPLATES), job.depth_steps = steps(chain.q, kDepth);
  job.y_boxes = chain.out == chain.m * chain.p && chain.p % 8 == 0 && vectors_aligned(chain.y);
  job.y_runs = runs_aligned(job.chain, run_of(ROWS));

  const auto beside_stages = [&] {  // bytes
    return job.template_steps *
               (int64_t(job.depth_steps) * Shape::kTBytes + int64_t(job.scaler_steps) * Shape::kSBytes) +
           job.y_boxes * Shape::Output::kBytes + Shape::Output::kBiasBytes + kBarrierBytes;
  };
  const auto stages = [&] { return (device.shared_bytes - beside_stages()) / kStageBytes; };
  if (stages() < kLeastStages) job.y_boxes = false;
  if (stages() < kLeastStages) return cudaErrorNotSupported;
  job.stages = int(min(stages(), int64_t(kMostStages)));
  const int shared_bytes = int(beside_stages()) + job.stages * kStageBytes;

  const Axis x_axes[] = {{chain.q, 1, kDepth}, {chain.n, chain.q, 1}, {chain.M, chain.in, kTokens}};
  const Axis T_axes[] = {
      {chain.q, 1, kDepth},
      {Order::kPaired, chain.T_a, Order::kPaired},
      {chain.N, chain.T_t, TEMPLATES},
      {chain.p / Order::kPaired, Order::kPaired * chain.T_a, 2 * ROWS / Order::kPaired}};
  if (const auto error = make_tensor_map(job.x, chain.element, chain.x, x_axes)) return error;
  if (const auto error = make_tensor_map(job.T, chain.element, chain.T, T_axes)) return error;
  if (job.y_boxes) {
    const Axis y_axes[] = {
        {chain.p, 1, 2 * ROWS}, {chain.M, chain.out, kTokens}, {chain.m, chain.p, SCALER_ROWS}};
    if (const auto error = make_tensor_map(job.y, chain.element, chain.y, y_axes, false)) return error;
  }
  if (!built_for_sm90a(kernel<Shape>, kThreads)) return cudaErrorNotSupported;
  const unsigned blocks = min(job.units.count, device.processors);
  return launch(kernel<Shape>, {dim3(blocks), kThreads, shared_bytes}, stream, job);
}

// Tiles by the scaler rows and templates that they hold, with as many template rows as fit. For each of them the sums
// of y and of Z and the second product's left operand take SCALER_ROWS / 2 + TEMPLATES / 2 + 4 registers, together at
// most 192 of 240; with more the assembler spills, and then also waits for each product.
template <class E>
cudaError_t run(const Chain &chain, const Device &device, cudaStream_t stream) {
  const bool fours = chain.N <= 4, eights = chain.N <= 8;
  if (chain.m <= 8) return fours ? run<E, 4, 16, 8>(chain, device, stream) : run<E, 8, 16, 8>(chain, device, stream);
  if (chain.m <= 16) return fours ? run<E, 4, 12, 16>(chain, device, stream) : run<E, 8, 12, 16>(chain, device, stream);
  if (chain.m <= 24 && !eights) return run<E, 16, 8, 24>(chain, device, stream);
  if (chain.m <= 32) return fours ? run<E, 4, 8, 32>(chain, device, stream) : run<E, 8, 8, 32>(chain, device, stream);
  return fours    ? run<E, 4, 4, 64>(chain, device, stream)
         : eights ? run<E, 8, 4, 64>(chain, device, stream)
                  : run<E, 16, 4, 64>(chain, device, stream);
}

}  // namespace

cudaError_t templates_first_sm90(const Chain &chain, const Device &device, cudaStream_t stream) {
  // What copies of boxes need: dense rows, each at a multiple of 16 bytes.
  if (chain.T_k != 1 || chain.in != chain.n * chain.q || !vectors_aligned(chain.x) || !vectors_aligned(chain.T))
    return cudaErrorNotSupported;
  for (const int64_t stride : {chain.q, chain.T_a, chain.T_t})
    if (stride % 8) return cudaErrorNotSupported;
  if (chain.M > INT32_MAX - kTokens) return cudaErrorNotSupported;
  return chain.element == kHalf ? run<Half>(chain, device, stream) : run<BFloat16>(chain, device, stream);
}

}  // namespace weit::cuda
