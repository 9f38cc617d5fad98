// Products of warpgroups whose operands lie transposed, for the emulator's own test.
#include <hopper.h>
#include <launch.h>
#include <wgmma.h>

namespace {

using namespace weit::cuda;

struct Toy {
  TensorMap a, x;
  const Half *b;
  float *out;
};

// out (64, 128) = round(a^T b) x with a (16, 64), b (16, 16) given column by column, and x (16, 128).
__global__ void chain(Toy toy) {
  char *const a = shared_memory(), *const x = a + 2048;
  Half *const b = reinterpret_cast<Half *>(x + 4096);
  uint64_t *const full = reinterpret_cast<uint64_t *>(b + 256);
  if (threadIdx.x == 0) {
    barrier_init(full, 1);
    barriers_ready();
    barrier_expect(full, 6144);
    load_box(a, toy.a, full, 0, 0, 0);
    load_box(x, toy.x, full, 0, 0, 0);
    load_box(x + 2048, toy.x, full, 64, 0, 0);
  }
  for (int i = threadIdx.x; i < 256; i += 128) b[i] = toy.b[(i / 128 * 8 + i / 8 % 8) * 16 + i / 64 % 2 * 8 + i % 8];
  show_to_products();
  __syncthreads();
  barrier_wait(full, 0);

  float v[2][4], sum[16][4] = {};
  products_begin();
  multiply_shared_at<Half>(v, swizzled_transpose(a, 0), blocked_operand(b), false);
  products_end();
  products_wait<0>();
  completed(v);
  uint32_t left[4];
  for (int i = 0; i < 4; ++i) left[i] = packed<Half>(v[i / 2][i % 2 * 2], v[i / 2][i % 2 * 2 + 1]);
  products_begin();
  multiply_left_bt<Half>(sum, left, swizzled_transpose(x, 2048));
  products_end();
  products_wait<0>();
  completed(sum);
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
  for (int octet = 0; octet < 16; ++octet)
    for (int i = 0; i < 4; ++i) toy.out[(row + i / 2 * 8) * 128 + 8 * octet + column + i % 2] = sum[octet][i];
}

}  // namespace

extern "C" int emulated_transposed(float *out, const void *a, const void *b, const void *x) {
  Toy toy{{}, {}, static_cast<const Half *>(b), out};
  const Axis a_axes[] = {{64, 1, 64}, {16, 64, 16}, {1, 1024, 1}};
  const Axis x_axes[] = {{128, 1, 64}, {16, 128, 16}, {1, 2048, 1}};
  if (const auto error = make_tensor_map(toy.a, kHalf, a, a_axes)) return error;
  if (const auto error = make_tensor_map(toy.x, kHalf, x, x_axes)) return error;
  return launch(chain, {dim3(1), 128, 6144 + 512 + 8}, nullptr, toy);
}
