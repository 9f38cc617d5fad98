// y[b,i,a] = sum_{j,t} S[t,i,j] Z[b,j,t,a], Z = sum_k T[t,a,k] x[b,j,k], in one kernel that keeps Z in registers.
//
// For sm_80 and later, with float16 or bfloat16 operands and float32 sums. A block owns 32 tokens, a few template rows
// and up to 64 scaler rows. Its eight warps each take 16 tokens and a fourth of the template rows. For each chunk of
// four scaler columns and four or eight templates they multiply x by T over all k, from a ring of stages in shared
// memory that is filled in the background, round Z to the operands' type where it is (regroup.h), and multiply it by S.
// x is read once for each block of template rows and each chunk of templates; y is written once.
//
// Operands whose rows are not aligned to 16 bytes, and templates with T_k != 1, are loaded number by number.
#include <launch.h>
#include <ptx.h>

#include "regroup.h"
#include "rows.h"

namespace weit::cuda {
namespace {

constexpr int kThreads = 256, kTokens = 32, kScalers = 4, kDepth = 32, kStages = 4;
constexpr int kXRows = kTokens * kScalers;      // of a stage, in the order (j, b)
constexpr int kRowBytes = 2 * kDepth;           // four vectors of 16 bytes, permuted against bank conflicts
constexpr int64_t kMostSize = int64_t(1) << 31;  // every index but that of a token has 32 bits

struct Job {
  Chain chain;
  bool x_vectors, T_vectors, y_runs;  // aligned for it
};

template <class E, int TEMPLATES, int ROWS, int OCTETS>
struct Tile {
  using Element = E;
  using Order = Regroup<TEMPLATES>;
  static constexpr int kTemplates = TEMPLATES, kRows = ROWS, kOctets = OCTETS;  // of a warp
  static constexpr int kBlockRows = 4 * ROWS, kScalerRows = 8 * OCTETS;
  static constexpr int kWarpColumns = ROWS * TEMPLATES, kColumns = 4 * kWarpColumns, kColumnTiles = kWarpColumns / 8;
  static constexpr int kSteps = kScalers / Order::kScalers;  // of the second product, 16 inner positions each
  static constexpr int kStageBytes = (kXRows + kColumns) * kRowBytes;
  static constexpr int kSCount = kScalers * TEMPLATES * kScalerRows;
  static constexpr int kSharedBytes = kStages * kStageBytes + 2 * kSCount * int(sizeof(E));
  static_assert(kColumnTiles % 2 == 0 && kSCount % kThreads == 0);
};

// A stage's place in the loop over scaler columns, templates and k, the last of them innermost.
struct Place {
  int j = 0, t = 0, k = 0;

  template <class Tile>
  __device__ void advance(const Chain &chain) {
    if ((k += kDepth) < chain.q) return;
    k = 0;
    if ((t += Tile::kTemplates) < chain.N) return;
    t = 0, j += kScalers;
  }
};

// Where vector `part` of a row lies: eight rows that ldmatrix reads together cover all banks once.
__device__ __forceinline__ int shared_offset(int row, int part) {
  return row * kRowBytes + (part ^ (row / 2 % 4)) * 16;
}

// Eight numbers of a row, zeros behind its end.
template <class E>
__device__ __forceinline__ void load_eight(char *to, const E *from, int64_t count, int64_t stride, bool vectors) {
  const Row<E> row{from, clamp(count, 8)};
  if (vectors)
    copy_async(to, row.at, 2 * row.count);
  else
    *reinterpret_cast<uint4 *>(to) = load<false>(row, 0, stride);
}

// x[b, j, k] as rows (j, b) and T[t, a, k] as rows in the order of Z's columns, for kDepth of k; zeros outside.
template <class Tile>
__device__ __forceinline__ void load_stage(const Job &job, char *stage, const Place &at, int64_t b0, int a0) {
  using E = typename Tile::Element;
  const Chain &c = job.chain;
  const int k = at.k + threadIdx.x % 4 * 8;
#pragma unroll
  for (int first = 0; first < kXRows; first += kThreads / 4) {
    const int row = first + threadIdx.x / 4, j = at.j + row / kTokens;
    const int64_t b = b0 + row % kTokens, feature = j * c.q + k;
    const int64_t count = b < c.M && j < c.n ? min(c.q - k, c.in - feature) : 0;
    const E *from = static_cast<const E *>(c.x) + (count > 0 ? b * c.in + feature : 0);
    load_eight(stage + shared_offset(row, threadIdx.x % 4), from, count, 1, job.x_vectors);
  }
#pragma unroll
  for (int first = 0; first < Tile::kColumns; first += kThreads / 4) {
    const int row = first + threadIdx.x / 4;
    const int t = at.t + Tile::Order::template_of(row), a = a0 + Tile::Order::row(row);
    const int64_t count = t < c.N && a < c.p ? c.q - k : 0;
    const E *from = static_cast<const E *>(c.T) + (count > 0 ? t * c.T_t + a * c.T_a + k * c.T_k : 0);
    load_eight(stage + shared_offset(kXRows + row, threadIdx.x % 4), from, count, c.T_k, job.T_vectors);
  }
}

// A chunk of S in the order in which lanes take it as right operands: [step][octet of i][lane][four inner positions].
// It passes through registers, so that what the loads take is spent on the chunk before.
template <class Tile>
struct Scalers {
  using E = typename Tile::Element;
  static constexpr int kCount = Tile::kSCount / kThreads;
  E values[kCount];

  __device__ __forceinline__ void load(const Chain &c, const Place &at, int i0) {
#pragma unroll
    for (int v = 0; v < kCount; ++v) {
      const int index = v * kThreads + threadIdx.x, lane = index / 4 % 32;
      const int position = lane % 4 * 2 + index % 2 + index / 2 % 2 * 8, step = index / 128 / Tile::kOctets;
      const int t = at.t + Tile::Order::inner_template(position), i = i0 + index / 128 % Tile::kOctets * 8 + lane / 4;
      const int j = at.j + step * Tile::Order::kScalers + Tile::Order::inner_scaler(position);
      narrow(0, values[v]);
      if (t < c.N && i < c.m && j < c.n)
        values[v] = static_cast<const E *>(c.S)[t * c.S_t + i * c.S_i + j * c.S_j];
    }
  }

  __device__ __forceinline__ void store(E *to) const {
#pragma unroll
    for (int v = 0; v < kCount; ++v) to[v * kThreads + threadIdx.x] = values[v];
  }
};

// Z of one chunk += x T over one stage.
template <class Tile>
__device__ __forceinline__ void multiply_stage(
    float (&z)[kScalers][Tile::kColumnTiles][4], const char *stage, int scalers, int depth) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int x_row = warp / 4 * 16 + lane % 16;
  const int T_row = kXRows + warp % 4 * Tile::kWarpColumns + lane / 16 * 8 + lane % 8;
#pragma unroll
  for (int step = 0; step < kDepth / 16; ++step) {
    if (16 * step >= depth) break;
    uint32_t right[Tile::kColumnTiles / 2][4];
#pragma unroll
    for (int pair = 0; pair < Tile::kColumnTiles / 2; ++pair)
      load_matrices(right[pair], stage + shared_offset(T_row + 16 * pair, 2 * step + lane / 8 % 2));
#pragma unroll
    for (int j = 0; j < kScalers; ++j) {
      if (j >= scalers) break;
      uint32_t left[4];
      load_matrices(left, stage + shared_offset(j * kTokens + x_row, 2 * step + lane / 16));
#pragma unroll
      for (int tile = 0; tile < Tile::kColumnTiles; ++tile) {
        const auto &b = right[tile / 2];
        multiply_add<typename Tile::Element>(z[j][tile], left, b[tile % 2 * 2], b[tile % 2 * 2 + 1]);
      }
    }
  }
}

// y += S Z for one chunk.
template <class Tile>
__device__ __forceinline__ void multiply_scalers(
    float (&sum)[Tile::kRows][Tile::kOctets][4], const float (&z)[kScalers][Tile::kColumnTiles][4],
    const typename Tile::Element *S, int scaler_rows) {
  using E = typename Tile::Element;
  constexpr int kShared = Tile::Order::kScalers;
  const uint2 *right = reinterpret_cast<const uint2 *>(S) + threadIdx.x % 32;
#pragma unroll
  for (int step = 0; step < Tile::kSteps; ++step) {
    uint32_t left[Tile::kRows][4];
#pragma unroll
    for (int j = 0; j < kShared; ++j) Tile::Order::template put<E, Tile::kRows>(left, z[step * kShared + j], j);
#pragma unroll
    for (int octet = 0; octet < Tile::kOctets; ++octet) {
      if (8 * octet >= scaler_rows) break;
      const uint2 b = right[(step * Tile::kOctets + octet) * 32];
#pragma unroll
      for (int a = 0; a < Tile::kRows; ++a) multiply_add<E>(sum[a][octet], left[a], b.x, b.y);
    }
  }
}

template <class Tile>
__global__ void __launch_bounds__(kThreads) kernel(const __grid_constant__ Job job) {
  using E = typename Tile::Element;
  const Chain &c = job.chain;
  const int a_blocks = int(blocks_of(c.p, Tile::kBlockRows)), i_blocks = int(blocks_of(c.m, Tile::kScalerRows));
  const int rest = blockIdx.x / a_blocks;  // neighbours share their tokens, so most of x comes from the L2 cache
  const int64_t b0 = int64_t(rest / i_blocks) * kTokens;
  const int a0 = blockIdx.x % a_blocks * Tile::kBlockRows, i0 = rest % i_blocks * Tile::kScalerRows;
  const int steps = int(blocks_of(c.n, kScalers) * blocks_of(c.N, Tile::kTemplates) * blocks_of(c.q, kDepth));

  char *stages = shared_memory();
  E *S = reinterpret_cast<E *>(stages + kStages * Tile::kStageBytes);  // of this chunk and of the next, in turns

  Place ahead, here;
  Scalers<Tile> scalers;
  scalers.load(c, here, i0);
  scalers.store(S);
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < steps) load_stage<Tile>(job, stages + stage * Tile::kStageBytes, ahead, b0, a0);
    ahead.template advance<Tile>(c);
    copies_commit();
  }

  float sum[Tile::kRows][Tile::kOctets][4] = {}, z[kScalers][Tile::kColumnTiles][4];
  for (int step = 0, chunk = 0; step < steps; ++step) {
    copies_wait<kStages - 2>();
    __syncthreads();  // this step's stage is there for all, and nobody reads the one before it any more
    if (step + kStages - 1 < steps)
      load_stage<Tile>(job, stages + (step + kStages - 1) % kStages * Tile::kStageBytes, ahead, b0, a0);
    ahead.template advance<Tile>(c);
    copies_commit();

    Place next = here;
    next.template advance<Tile>(c);
    if (here.k == 0) {
#pragma unroll
      for (int j = 0; j < kScalers; ++j)
#pragma unroll
        for (auto &tile : z[j]) tile[0] = tile[1] = tile[2] = tile[3] = 0;
    }
    const int depth = int(c.q) - here.k, columns = int(c.n) - here.j;
    multiply_stage<Tile>(z, stages + step % kStages * Tile::kStageBytes, columns, depth);
    if (next.k == 0) {  // a chunk is complete
      scalers.load(c, next, i0);
      multiply_scalers<Tile>(sum, z, S + chunk % 2 * Tile::kSCount, int(c.m) - i0);
      scalers.store(S + ++chunk % 2 * Tile::kSCount);
    }
    here = next;
  }

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t b = b0 + warp / 4 * 16 + lane / 4;
  store_result<E>(c, sum, b, i0 + lane % 4 * 2, a0 + warp % 4 * Tile::kRows, job.y_runs);
}

template <class E, int TEMPLATES, int ROWS, int OCTETS>
cudaError_t run(const Chain &chain, cudaStream_t stream) {
  using Shape = Tile<E, TEMPLATES, ROWS, OCTETS>;
  const int64_t blocks = blocks_of(chain.M, kTokens) * blocks_of(chain.p, Shape::kBlockRows) *
                         blocks_of(chain.m, Shape::kScalerRows);
  if (blocks >= kMostSize) return cudaErrorNotSupported;
  const bool x_vectors = chain.q % 8 == 0 && chain.in % 8 == 0 && vectors_aligned(chain.x);
  const bool T_vectors = chain.T_k == 1 && chain.T_t % 8 == 0 && chain.T_a % 8 == 0 && vectors_aligned(chain.T);
  const Job job{chain, x_vectors, T_vectors, runs_aligned(chain, run_of(ROWS))};
  return launch(kernel<Shape>, {dim3(unsigned(blocks)), kThreads, Shape::kSharedBytes}, stream, job);
}

// Tiles by the templates and scaler rows that they hold. The sums of y take 32 to 128 registers beside the 64 or 32 of
// Z. Scaler rows beyond a tile's cost all of Z again, so the tile has as many as the layer, up to the 64 that fit.
template <class E>
cudaError_t run(const Chain &chain, cudaStream_t stream) {
  const int octets = chain.m <= 16 ? 2 : chain.m <= 32 ? 4 : 8;
  if (blocks_of(chain.N, 8) * 8 == blocks_of(chain.N, 4) * 4) {  // no more padding in eights than in fours
    return octets == 2   ? run<E, 8, 4, 2>(chain, stream)
           : octets == 4 ? run<E, 8, 4, 4>(chain, stream)
                         : run<E, 8, 4, 8>(chain, stream);
  }
  return octets == 2   ? run<E, 4, 8, 2>(chain, stream)
         : octets == 4 ? run<E, 4, 8, 4>(chain, stream)
                       : run<E, 4, 4, 8>(chain, stream);
}

}  // namespace

cudaError_t templates_first(const Chain &chain, cudaStream_t stream) {
  if (chain.M == 0) return cudaSuccess;
  if (chain.element == kFloat) return cudaErrorNotSupported;
  for (const int64_t size : {chain.N * chain.n * chain.q, chain.m * chain.p, chain.N * chain.p})
    if (size >= kMostSize) return cudaErrorNotSupported;
  Device device;
  if (const auto error = current_device(device)) return error;
  if (device.capability < 80) return cudaErrorNotSupported;
  if (device.capability == 90) {
    const auto error = templates_first_sm90(chain, device, stream);
    if (error != cudaErrorNotSupported) return error;
  }
  return chain.element == kHalf ? run<Half>(chain, stream) : run<BFloat16>(chain, stream);
}

}  // namespace weit::cuda
