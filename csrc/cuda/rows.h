// Rows of operands in memory, loaded 16 bytes at a time whatever their strides, edges and alignment are.
#pragma once

#include <ptx.h>

#include "element.h"

namespace weit::cuda {

// One row: `count` numbers, at a stride that all rows of the operand have; what follows counts as zeros.
template <class T>
struct Row {
  const T *at;
  int count;
};

__device__ __forceinline__ int clamp(int64_t value, int64_t most) {
  return int(value < 0 ? 0 : value < most ? value : most);
}

// 16 bytes of a row from number k. DENSE: neighbours in memory, and rows start and end at multiples of 16 bytes.
template <bool DENSE, class T>
__device__ __forceinline__ uint4 load(const Row<T> &row, int k, int64_t stride) {
  constexpr int kCount = 16 / sizeof(T);
  union {
    uint4 words;
    Pack<T, kCount> pack;
  } both;
  both.words = make_uint4(0, 0, 0, 0);
  if constexpr (DENSE) {
    if (k < row.count) both.words = *reinterpret_cast<const uint4 *>(row.at + k);
  } else {
#pragma unroll
    for (int e = 0; e < kCount; ++e)
      if (k + e < row.count) both.pack.values[e] = row.at[(k + e) * stride];
  }
  return both.words;
}

// `rows` rows of 2^log_width numbers, copied by a block's threads to shared memory, `to_stride` apart. If `dense`, in
// the background; then copies_commit() and copies_wait() are due.
template <class T, class Rows>
__device__ __forceinline__ void stage(
    T *to, int to_stride, int rows, int log_width, bool dense, int64_t stride, const Rows &row_at) {
  constexpr int kCount = 16 / sizeof(T);
  for (int first = threadIdx.x * kCount; first < rows << log_width; first += blockDim.x * kCount) {
    const int r = first >> log_width, k = first & ((1 << log_width) - 1);
    const Row<T> row = row_at(r);
    T *at = to + r * to_stride + k;
    if (dense)
      copy_async(at, row.at + (k < row.count ? k : 0), k < row.count ? 16 : 0);
    else
      *reinterpret_cast<uint4 *>(at) = load<false>(row, k, stride);
  }
}

}  // namespace weit::cuda
