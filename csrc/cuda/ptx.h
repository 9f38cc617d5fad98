// Instructions that C++ has no name for, each a function. Sources include this file in angle brackets: under
// tests/weit_kernels/cuda an emulator's file of the same name, with the same functions, is found first.
#pragma once

#include <stdint.h>

#include "element.h"

namespace weit::cuda {

// The block's dynamic shared memory. It is the only kind that kernels use, so that its size is always checked.
__device__ __forceinline__ char *shared_memory() {
  extern __shared__ __align__(1024) char bytes[];
  return bytes;
}

__device__ __forceinline__ uint32_t shared_address(const void *pointer) {
  return uint32_t(__cvta_generic_to_shared(pointer));
}

// 16 bytes to shared memory in the background: the first `bytes` from global memory, the rest zeros.
__device__ __forceinline__ void copy_async(void *to, const void *from, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
}

// Closes a group of the copies above.
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all of this thread's groups but the last LEFT have arrived; other threads see them after a barrier.
template <int LEFT>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// Four matrices of 8 x 8 numbers of 16 bits. Lane l passes the address of row l % 8 of matrix l / 8, 16 bytes, and gets
// of each matrix the numbers (l / 4, 2 (l % 4)) and the one to its right; transposed: the one below, of the transpose.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void load_transposed(uint32_t (&to)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// sum (16 x 8) += a (16 x 16) b (16 x 8). With g = lane / 4 and c = 2 (lane % 4), pairs along the last axis of a and c,
// along the first of b: a holds (g, c), (g + 8, c), (g, c + 8), (g + 8, c + 8); b (c, g), (c + 8, g); sum (g, c),
// (g + 8, c).
template <class T>
__device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

#define WEIT_MULTIPLY_ADD(T, NAME)                                                                                    \
  template <>                                                                                                         \
  __device__ __forceinline__ void multiply_add<T>(float(&sum)[4], const uint32_t(&a)[4], uint32_t b0, uint32_t b1) {  \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME                                                        \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                        \
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                                      \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                              \
  }
WEIT_MULTIPLY_ADD(Half, "f16")
WEIT_MULTIPLY_ADD(BFloat16, "bf16")
#undef WEIT_MULTIPLY_ADD

// Brings a line of global memory into the L2 cache.
__device__ __forceinline__ void prefetch(const void *from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

// For kernels launched early (launch.h): until everything that earlier kernels of the stream wrote can be read.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel of the stream start, if it is one of those, as soon as every block has called this or ended.
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace weit::cuda
