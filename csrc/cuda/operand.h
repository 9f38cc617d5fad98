// How a product of warpgroups (wgmma.h) is told where an operand lies in shared memory: 64 bits that hold, in units of
// 16 bytes, the start, the step to the next 8 inner numbers (from bit 16) and the step to the next 8 rows (from bit
// 32); the highest two bits say whether rows of 128 bytes are permuted (1) or 8 x 8 numbers are together (0). Of an
// operand that lies transposed, in rows of 128 bytes, the first step is to the next 64 of its rows, the second to the
// next 8 inner numbers.
//
// For blocks on their own: in a cluster, addresses hold the block's rank from bit 24 on, which would have to be masked.
#pragma once

#include <ptx.h>
#include <stdint.h>

namespace weit::cuda {

// Rows of 128 bytes as load_box() leaves them, from a multiple of 1024 bytes on; the step along them is implied. Adding
// 2 to the operand moves on by 16 inner numbers.
__device__ __forceinline__ uint64_t swizzled_operand(const void *rows) {
  return shared_address(rows) >> 4 | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

// The transpose of such rows, each of them 64 numbers at one inner position; `bytes` on lie the rows of the next 64
// numbers. Adding 128 to the operand moves on by 16 inner positions.
__device__ __forceinline__ uint64_t swizzled_transpose(const void *rows, int bytes) {
  return shared_address(rows) >> 4 | uint64_t(bytes >> 4) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

// Blocks of 8 rows x 8 inner numbers, 128 bytes each: two along the inner axis, then those of the next 8 rows.
__device__ __forceinline__ uint64_t blocked_operand(const void *blocks) {
  return shared_address(blocks) >> 4 | uint64_t(128 >> 4) << 16 | uint64_t(256 >> 4) << 32;
}

}  // namespace weit::cuda
