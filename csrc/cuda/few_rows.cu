// A few rows (tokens): y = S (T x) in one launch, for calls that are bound by their launch and by reading T once.
//
// A block owns BM tokens, BA template rows and BI scaler rows of y. For chunks of BJ scaler columns and BT templates it
// makes Z[(b,j), (t,a)] = sum_k x T straight from global memory into registers, each number of T loaded by one warp of
// the block; rounds Z to the operands' type and lays it as [(b,a), (t,j)] in shared memory; and multiplies it by S. No
// block needs another's sum, so the result is the same in every run. Where tokens and template rows do not fill the
// machine, blocks split scaler rows too and each makes Z again; T then comes from the L2 cache.
#include "dots.h"
#include "kernels.h"

namespace weit::cuda {
namespace {

struct Job {
  Chain chain;
  int BM, BJ, BT, BA, BI;
  int inner, row;  // t and j together, in whole pieces of 16 bytes; numbers from one such row to the next
  bool copy_S;     // in pieces of 16 bytes
};

// Where a block keeps what, in bytes from the start of its shared memory.
template <class T, class Tile>
struct Places {
  int partial_z, z, s, partial_y, end;

  __host__ __device__ explicit Places(const Job &job) {
    const int rows = job.BM * job.BJ, cols = job.BT * job.BA, outputs = job.BM * job.BA;
    partial_z = 0;
    z = partial_z + round(4 * rows * cols * Shares<Tile>(rows, cols, int(job.chain.q)).splits);
    s = z + round(int(sizeof(T)) * outputs * job.row);
    partial_y = s + round(int(sizeof(T)) * job.BI * job.row);
    end = partial_y + round(4 * outputs * job.BI * Shares<Tile>(job.BI, outputs, job.inner).splits);
  }
  __host__ __device__ static int round(int bytes) { return (bytes + 127) / 128 * 128; }
};

// S as [i, (t,j)]: zeros where there is no such scaler, behind the last column too.
template <class T>
__device__ __forceinline__ void stage_scalers(const Job &job, T *to, int64_t i0, int64_t t0, int64_t j0) {
  const Chain &c = job.chain;
  const T *S = static_cast<const T *>(c.S);
  const int step = job.copy_S ? 16 / sizeof(T) : 1, pieces = job.inner / step;
  for (int piece = threadIdx.x; piece < job.BI * pieces; piece += blockDim.x) {
    const int row = piece / pieces, l = piece % pieces * step;
    const int64_t i = i0 + row, t = t0 + l / job.BJ, j = j0 + l % job.BJ;
    const bool inside = i < c.m && l < job.BT * job.BJ && t < c.N && j < c.n;
    const T *from = S + (inside ? t * c.S_t + i * c.S_i + j * c.S_j : 0);
    T *at = to + row * job.row + l;
    if (job.copy_S)
      copy_async(at, from, inside ? 16 : 0);
    else if (inside)
      *at = *from;
    else
      narrow(0.0f, *at);
  }
  copies_commit();
}

template <class T, class Tile, bool DENSE>
__global__ void __launch_bounds__(32 * kWarps, 1) kernel(const __grid_constant__ Job job) {
  const Chain &c = job.chain;
  const Places<T, Tile> places(job);
  char *memory = shared_memory();
  float *partial_z = reinterpret_cast<float *>(memory + places.partial_z);
  float *partial_y = reinterpret_cast<float *>(memory + places.partial_y);
  T *z = reinterpret_cast<T *>(memory + places.z), *s = reinterpret_cast<T *>(memory + places.s);

  const int64_t a_blocks = blocks_of(c.p, job.BA), i_blocks = blocks_of(c.m, job.BI);
  const int64_t a0 = blockIdx.x % a_blocks * job.BA, i0 = blockIdx.x / a_blocks % i_blocks * job.BI;
  const int64_t b0 = blockIdx.x / a_blocks / i_blocks * job.BM;
  const int rows = job.BM * job.BJ, cols = job.BT * job.BA, outputs = job.BM * job.BA;
  const T *x = static_cast<const T *>(c.x), *templates = static_cast<const T *>(c.T);

  let_next_kernel_start();
  if constexpr (DENSE) {  // what earlier kernels may yet write is not read, only brought near
    const int lines = int(blocks_of(c.q * sizeof(T), 128));
    for (int line = threadIdx.x; line < cols * lines; line += blockDim.x) {
      const int64_t t = line / lines / job.BA, a = a0 + line / lines % job.BA;
      if (t < c.N && a < c.p) prefetch(templates + t * c.T_t + a * c.T_a + line % lines * (128 / sizeof(T)));
    }
  }
  wait_for_previous_kernel();

  for (int64_t t0 = 0; t0 < c.N; t0 += job.BT)
    for (int64_t j0 = 0; j0 < c.n; j0 += job.BJ) {
      const bool first = t0 == 0 && j0 == 0;
      if (!first) __syncthreads();  // the last chunk's s has been used
      stage_scalers(job, s, i0, t0, j0);
      const auto x_row = [&](int r) -> Row<T> {
        const int64_t b = b0 + r / job.BJ, j = j0 + r % job.BJ;
        const bool inside = r < rows && b < c.M && j < c.n;
        return {x + (inside ? b * c.in + j * c.q : 0), inside ? clamp(c.in - j * c.q, c.q) : 0};
      };
      const auto T_row = [&](int column) -> Row<T> {
        const int64_t t = t0 + column / job.BA, a = a0 + column % job.BA;
        const bool inside = column < cols && t < c.N && a < c.p;
        return {templates + (inside ? t * c.T_t + a * c.T_a : 0), inside ? int(c.q) : 0};
      };
      product<Tile, DENSE>(x_row, T_row, c.T_k, rows, cols, int(c.q), partial_z, false);
      __syncthreads();
      const int splits = Shares<Tile>(rows, cols, int(c.q)).splits;
      for (int e = threadIdx.x; e < outputs * job.inner; e += blockDim.x) {
        const int ba = e / job.inner, l = e % job.inner;
        const int r = ba / job.BA * job.BJ + l % job.BJ, column = l / job.BJ * job.BA + ba % job.BA;
        float sum = 0;
        if (l < job.BT * job.BJ)
          for (int split = 0; split < splits; ++split) sum += partial_z[(split * rows + r) * cols + column];
        narrow(sum, z[ba * job.row + l]);
      }
      copies_wait<0>();
      __syncthreads();
      const auto s_row = [&](int r) -> Row<T> { return {s + r * job.row, r < job.BI ? job.inner : 0}; };
      const auto z_row = [&](int r) -> Row<T> { return {z + r * job.row, r < outputs ? job.inner : 0}; };
      product<Tile, true>(s_row, z_row, 1, job.BI, outputs, job.inner, partial_y, !first);
    }
  __syncthreads();

  const T *bias = static_cast<const T *>(c.bias);
  const int splits = Shares<Tile>(job.BI, outputs, job.inner).splits;
  for (int e = threadIdx.x; e < job.BI * outputs; e += blockDim.x) {
    const int64_t b = b0 + e / job.BA % job.BM, i = i0 + e / outputs, a = a0 + e % job.BA, feature = i * c.p + a;
    if (b >= c.M || i >= c.m || a >= c.p || feature >= c.out) continue;
    float sum = 0;
    for (int split = 0; split < splits; ++split) sum += partial_y[split * job.BI * outputs + e];
    if (bias) sum += widened(bias[feature]);
    narrow(sum, static_cast<T *>(c.y)[b * c.out + feature]);
  }
}

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

int power_of_two_below(int64_t value) {
  int power = 1;
  while (2 * power <= value) power *= 2;
  return power;
}

// The sizes of a block's work. A product's tile has up to 128 x 64 sums. Whether three quarters of the processors at
// work are enough, and that eight tokens share a block, was not measured.
Job sizes(const Chain &c, const Device &device, int item) {
  Job job{c};
  job.BM = int(smaller(c.M, 8));
  job.BT = int(smaller(c.N, 16));
  job.BJ = int(smaller(c.n, smaller(128 / job.BM, 512 / job.BT)));
  job.BA = power_of_two_below(smaller(c.p, smaller(64 / job.BT, 128 / job.BM)));
  const int64_t tokens = blocks_of(c.M, job.BM), enough = blocks_of(3 * device.processors, 4);
  while (job.BA > 1 && blocks_of(c.p, job.BA) * tokens < enough) job.BA /= 2;
  const int piece = 16 / item;
  job.inner = int(blocks_of(job.BT * job.BJ, piece)) * piece;
  job.row = int(blocks_of(job.inner * item, 64) | 1) * 64 / item;  // odd multiples of 64 bytes: no bank conflicts
  const int64_t i_tiles = blocks_of(c.m, 16), blocks = blocks_of(c.p, job.BA) * tokens;
  const int64_t i_blocks = smaller(i_tiles, blocks < enough ? device.processors / blocks : 1);
  const int64_t most = smaller(4, (32 << 10) / (16 * job.row * item));  // tiles of S in 32 KiB
  job.BI = 16 * int(smaller(blocks_of(i_tiles, i_blocks), most < 1 ? 1 : most));
  const auto whole = [piece](int64_t stride) { return stride % piece == 0; };
  const bool aligned = reinterpret_cast<uintptr_t>(c.S) % 16 == 0;
  job.copy_S = aligned && c.S_j == 1 && whole(c.S_t) && whole(c.S_i) && whole(c.n) && whole(job.BJ);
  return job;
}

template <class T, class Tile>
cudaError_t run(Job job, const Device &device, cudaStream_t stream) {
  const auto bytes = [&job] { return Places<T, Tile>(job).end; };
  // With 16 scaler rows all sizes fit in 99 KiB, the least that a block can have from compute capability 8.0 on.
  while (bytes() > device.shared_bytes && job.BI > 16) job.BI -= 16;
  if (bytes() > device.shared_bytes) return cudaErrorNotSupported;
  const Chain &c = job.chain;
  const int64_t blocks = blocks_of(c.p, job.BA) * blocks_of(c.m, job.BI) * blocks_of(c.M, job.BM);
  if (blocks > INT32_MAX) return cudaErrorNotSupported;
  const auto whole = [](int64_t value) { return value % (16 / sizeof(T)) == 0; };
  const bool aligned = (reinterpret_cast<uintptr_t>(c.x) | reinterpret_cast<uintptr_t>(c.T)) % 16 == 0;
  const bool dense = aligned && c.T_k == 1 && whole(c.T_t) && whole(c.T_a) && whole(c.q) && whole(c.in);
  const Grid grid{dim3(unsigned(blocks)), 32 * kWarps, bytes(), device.capability >= 90};
  return launch(dense ? kernel<T, Tile, true> : kernel<T, Tile, false>, grid, stream, job);
}

// Large tiles where every warp gets one: a quarter of the loads for each product.
template <class T>
cudaError_t run_16_bit(const Job &job, const Device &device, cudaStream_t stream) {
  using Large = Dots<T, 2, 4>;
  const bool large = Shares<Large>(job.BM * job.BJ, job.BT * job.BA, 1).tiles >= kWarps;
  return large ? run<T, Large>(job, device, stream) : run<T, Dots<T, 1, 1>>(job, device, stream);
}

}  // namespace

cudaError_t few_rows(const Chain &chain, cudaStream_t stream) {
  if (chain.M == 0) return cudaSuccess;
  Device device;
  if (const auto error = current_device(device)) return error;
  const Job job = sizes(chain, device, chain.element == kFloat ? 4 : 2);
  switch (chain.element) {
    case kFloat:
      return run<float, Dots<float, 1, 1>>(job, device, stream);
    case kHalf:
      return run_16_bit<Half>(job, device, stream);
    case kBFloat16:
      return run_16_bit<BFloat16>(job, device, stream);
  }
  return cudaErrorNotSupported;
}

}  // namespace weit::cuda
