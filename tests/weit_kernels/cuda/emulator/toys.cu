// Kernels that use the emulator rightly and wrongly, for its own test.
#include <launch.h>
#include <ptx.h>

namespace {

using namespace weit::cuda;

struct Toy {
  float *out;
  const Half *a, *b;
};

// out (16, 8) = a (16, 16) b (16, 8), row-major, copied to shared memory in the background.
__global__ void product(Toy toy) {
  Half *a = reinterpret_cast<Half *>(shared_memory()), *b = a + 256;
  const int lane = threadIdx.x;
  copy_async(a + 8 * lane, toy.a + 8 * lane, 16);
  if (lane < 16) copy_async(b + 8 * lane, toy.b + 8 * lane, 16);
  copies_commit();
  copies_wait<0>();
  __syncthreads();
  uint32_t left[4], right[4];
  load_matrices(left, a + lane % 16 * 16 + lane / 16 * 8);
  load_transposed(right, b + lane % 16 * 8);
  float sum[4] = {};
  multiply_add<Half>(sum, left, right[0], right[1]);
  for (int i = 0; i < 4; ++i) toy.out[(lane / 4 + i / 2 * 8) * 8 + 2 * (lane % 4) + i % 2] = sum[i];
}

// Every thread reads its neighbour's number; without the barrier some read it too early.
template <bool BARRIER>
__global__ void neighbour(Toy toy) {
  float *numbers = reinterpret_cast<float *>(shared_memory());
  numbers[threadIdx.x] = float(threadIdx.x);
  if (BARRIER) __syncthreads();
  toy.out[threadIdx.x] = numbers[(threadIdx.x + 1) % blockDim.x];
}

__global__ void half_a_barrier(Toy) {
  if (threadIdx.x < 32) __syncthreads();
}

__global__ void outside(Toy) { shared_memory()[threadIdx.x] = 1; }

__global__ void divergent(Toy) {
  if (threadIdx.x % 2)
    __syncwarp();
  else
    __shfl_xor_sync(0xffffffff, 1, 1);
}

__global__ void too_early(Toy toy) {
  Half *a = reinterpret_cast<Half *>(shared_memory());
  copy_async(a + 8 * threadIdx.x, toy.a, 16);
  toy.out[threadIdx.x] = widened(a[8 * threadIdx.x]);
}

}  // namespace

extern "C" int emulated_toy(int which, float *out, const void *a, const void *b) {
  void (*const kernels[])(Toy) = {product,        neighbour<true>, neighbour<false>, half_a_barrier,
                                  outside,        divergent,       too_early};
  const int threads[] = {32, 96, 96, 64, 96, 32, 32}, bytes[] = {768, 384, 384, 0, 64, 0, 512};
  const Toy toy{out, static_cast<const Half *>(a), static_cast<const Half *>(b)};
  return launch(kernels[which], {dim3(2), threads[which], bytes[which]}, nullptr, toy);
}
