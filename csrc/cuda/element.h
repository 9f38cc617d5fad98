// The types of operands, and their way to float32 and back.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace weit::cuda {

using Half = __half;
using BFloat16 = __nv_bfloat16;

__device__ __forceinline__ float widened(float v) { return v; }
__device__ __forceinline__ float widened(Half v) { return __half2float(v); }
__device__ __forceinline__ float widened(BFloat16 v) { return __bfloat162float(v); }

// To the nearest, ties to even.
__device__ __forceinline__ void narrow(float v, float &to) { to = v; }
__device__ __forceinline__ void narrow(float v, Half &to) { to = __float2half_rn(v); }
__device__ __forceinline__ void narrow(float v, BFloat16 &to) { to = __float2bfloat16_rn(v); }

// Elements that are loaded and stored together.
template <class T, int COUNT>
struct alignas(sizeof(T) * COUNT) Pack {
  T values[COUNT];
};

// Two elements in the word that a matrix instruction takes, the first in the low half.
template <class T>
__device__ __forceinline__ uint32_t packed(float first, float second) {
  union {
    Pack<T, 2> pair;
    uint32_t word;
  } both;
  narrow(first, both.pair.values[0]);
  narrow(second, both.pair.values[1]);
  return both.word;
}

// 32 numbers a lane are added over the warp; lane l gets the sum of those at place l. `numbers` is used up.
__device__ __forceinline__ float sum_for_each_lane(float (&numbers)[32], int lane) {
#pragma unroll
  for (int level = 0; level < 5; ++level) {
    const int half = 16 >> level;  // lanes whose bit is set keep the upper half of what is left
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      if (i >= half) continue;  // a bound that is known before the outer loop is unrolled: else no registers
      const bool upper = lane & half;
      const float kept = upper ? numbers[i + half] : numbers[i], given = upper ? numbers[i] : numbers[i + half];
      numbers[i] = kept + __shfl_xor_sync(0xffffffff, given, half);
    }
  }
  return numbers[0];
}

__host__ __device__ constexpr int64_t blocks_of(int64_t size, int64_t block) { return (size + block - 1) / block; }

}  // namespace weit::cuda
