// Operands of matrix instructions from row-major tiles in shared memory, whose rows must be whole pieces of 16 bytes.
// Rows that are an odd number of such pieces apart keep the banks free of conflicts.
#pragma once

#include <ptx.h>

namespace weit::cuda {

// The left operand, 16 x 16, from a tile that holds it.
template <class T>
__device__ __forceinline__ void load_left(uint32_t (&a)[4], const T *tile, int stride) {
  const int lane = threadIdx.x % 32;
  load_matrices(a, tile + lane % 16 * stride + lane / 16 * 8);
}

// The same from a tile that holds its transpose.
template <class T>
__device__ __forceinline__ void load_left_of_transposed(uint32_t (&a)[4], const T *tile, int stride) {
  const int lane = threadIdx.x % 32;
  load_transposed(a, tile + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8);
}

// Two right operands, 16 x 8 each, side by side, from a tile that holds them: the first is b[0] and b[1].
template <class T>
__device__ __forceinline__ void load_right(uint32_t (&b)[4], const T *tile, int stride) {
  const int lane = threadIdx.x % 32;
  load_transposed(b, tile + lane % 16 * stride + lane / 16 * 8);
}

// The same from a tile that holds their transpose.
template <class T>
__device__ __forceinline__ void load_right_of_transposed(uint32_t (&b)[4], const T *tile, int stride) {
  const int lane = threadIdx.x % 32;
  load_matrices(b, tile + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8);
}

// sums (16 x 16) += a b, with both of b's operands.
template <class T>
__device__ __forceinline__ void multiply_add(float (&sums)[2][4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
  multiply_add<T>(sums[0], a, b[0], b[1]);
  multiply_add<T>(sums[1], a, b[2], b[3]);
}

}  // namespace weit::cuda
