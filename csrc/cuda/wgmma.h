// Matrix products of warpgroups on sm_90a, each a function; see hopper.h.
//
// A product of 64 x 16 by 16 x COLUMNS numbers is added to float32 sums in registers. Warp w of the four has rows 16 w
// to 16 w + 15, in the layout of ptx.h's multiply_add(): sum[tile] for each eight columns. Products are computed in the
// background between products_begin() and products_wait(); until then nobody may touch their sums and left operands.
#pragma once

#include <stdint.h>

#include "operand.h"
#include "ptx.h"

namespace weit::cuda {

// Before the first product, and after registers of products were written or read.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Closes a group of products.
__device__ __forceinline__ void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until all groups but the last LEFT are complete.
template <int LEFT>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

// After a wait: the compiler must not read these sums earlier.
template <int TILES>
__device__ __forceinline__ void completed(float (&sum)[TILES][4]) {
#pragma unroll
  for (auto &tile : sum) asm volatile("" : "+f"(tile[0]), "+f"(tile[1]), "+f"(tile[2]), "+f"(tile[3])::"memory");
}

// sum = a b, plus sum where `add`, with both operands in shared memory, each row by row of its inner axis.
template <class T, int TILES>
__device__ __forceinline__ void multiply_shared(float (&sum)[TILES][4], uint64_t a, uint64_t b, bool add);

// The same with an a that lies transposed: row by row of 64 numbers at one inner position.
template <class T, int TILES>
__device__ __forceinline__ void multiply_shared_at(float (&sum)[TILES][4], uint64_t a, uint64_t b, bool add);

// sum += a b with a in registers, in the layout of ptx.h's multiply_add().
template <class T, int TILES>
__device__ __forceinline__ void multiply_left(float (&sum)[TILES][4], const uint32_t (&a)[4], uint64_t b);

// The same with a b that lies transposed.
template <class T, int TILES>
__device__ __forceinline__ void multiply_left_bt(float (&sum)[TILES][4], const uint32_t (&a)[4], uint64_t b);

#define WEIT_SUMS_1(i) "+f"(sum[i][0]), "+f"(sum[i][1]), "+f"(sum[i][2]), "+f"(sum[i][3])
#define WEIT_SUMS_2(i) WEIT_SUMS_1(i), WEIT_SUMS_1(i + 1)
#define WEIT_SUMS_3(i) WEIT_SUMS_2(i), WEIT_SUMS_1(i + 2)
#define WEIT_SUMS_4(i) WEIT_SUMS_2(i), WEIT_SUMS_2(i + 2)
#define WEIT_SUMS_6(i) WEIT_SUMS_4(i), WEIT_SUMS_2(i + 4)
#define WEIT_SUMS_8(i) WEIT_SUMS_4(i), WEIT_SUMS_4(i + 4)
#define WEIT_SUMS_12(i) WEIT_SUMS_8(i), WEIT_SUMS_4(i + 8)
#define WEIT_SUMS_16(i) WEIT_SUMS_8(i), WEIT_SUMS_8(i + 8)
#define WEIT_NAMES_1 "%0, %1, %2, %3"
#define WEIT_NAMES_2 WEIT_NAMES_1 ", %4, %5, %6, %7"
#define WEIT_NAMES_3 WEIT_NAMES_2 ", %8, %9, %10, %11"
#define WEIT_NAMES_4 WEIT_NAMES_3 ", %12, %13, %14, %15"
#define WEIT_NAMES_6 WEIT_NAMES_4 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define WEIT_NAMES_8 WEIT_NAMES_6 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define WEIT_NAMES_12 WEIT_NAMES_8 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define WEIT_NAMES_16 WEIT_NAMES_12 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// TRANSPOSED: 1 for each operand in shared memory that lies transposed. Then the names of what follows the sums.
#define WEIT_SHARED(FUNCTION, TRANSPOSED, T, NAME, TILES, COLUMNS, A, B, ADD)                                         \
  template <>                                                                                                        \
  __device__ __forceinline__ void FUNCTION<T, TILES>(float(&sum)[TILES][4], uint64_t a, uint64_t b, bool add) {       \
    asm volatile("{.reg .pred p; setp.ne.b32 p, " ADD ", 0; wgmma.mma_async.sync.aligned.m64n" COLUMNS "k16.f32." NAME \
                 "." NAME " {" WEIT_NAMES_##TILES "}, " A ", " B ", p, 1, 1, " TRANSPOSED ";}"                        \
                 : WEIT_SUMS_##TILES(0)                                                                              \
                 : "l"(a), "l"(b), "r"(int(add)));                                                                   \
  }
#define WEIT_LEFT(FUNCTION, TRANSPOSED, T, NAME, TILES, COLUMNS, A, B)                                                \
  template <>                                                                                                        \
  __device__ __forceinline__ void FUNCTION<T, TILES>(                                                                \
      float(&sum)[TILES][4], const uint32_t(&a)[4], uint64_t b) {                                                    \
    asm volatile("{.reg .pred p; setp.eq.b32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n" COLUMNS "k16.f32." NAME "." \
                 NAME " {" WEIT_NAMES_##TILES "}, {" A "}, " B ", p, 1, 1, " TRANSPOSED ";}"                          \
                 : WEIT_SUMS_##TILES(0)                                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                              \
  }
#define WEIT_PRODUCTS(T, NAME)                                                            \
  WEIT_SHARED(multiply_shared, "0, 0", T, NAME, 2, "16", "%8", "%9", "%10")               \
  WEIT_SHARED(multiply_shared, "0, 0", T, NAME, 4, "32", "%16", "%17", "%18")             \
  WEIT_SHARED(multiply_shared, "0, 0", T, NAME, 6, "48", "%24", "%25", "%26")             \
  WEIT_SHARED(multiply_shared, "0, 0", T, NAME, 8, "64", "%32", "%33", "%34")             \
  WEIT_SHARED(multiply_shared, "0, 0", T, NAME, 12, "96", "%48", "%49", "%50")            \
  WEIT_SHARED(multiply_shared, "0, 0", T, NAME, 16, "128", "%64", "%65", "%66")           \
  WEIT_SHARED(multiply_shared_at, "1, 0", T, NAME, 1, "8", "%4", "%5", "%6")              \
  WEIT_SHARED(multiply_shared_at, "1, 0", T, NAME, 2, "16", "%8", "%9", "%10")            \
  WEIT_SHARED(multiply_shared_at, "1, 0", T, NAME, 4, "32", "%16", "%17", "%18")          \
  WEIT_LEFT(multiply_left, "0", T, NAME, 1, "8", "%4, %5, %6, %7", "%8")                  \
  WEIT_LEFT(multiply_left, "0", T, NAME, 2, "16", "%8, %9, %10, %11", "%12")              \
  WEIT_LEFT(multiply_left, "0", T, NAME, 3, "24", "%12, %13, %14, %15", "%16")            \
  WEIT_LEFT(multiply_left, "0", T, NAME, 4, "32", "%16, %17, %18, %19", "%20")            \
  WEIT_LEFT(multiply_left, "0", T, NAME, 8, "64", "%32, %33, %34, %35", "%36")            \
  WEIT_LEFT(multiply_left_bt, "1", T, NAME, 8, "64", "%32, %33, %34, %35", "%36")         \
  WEIT_LEFT(multiply_left_bt, "1", T, NAME, 16, "128", "%64, %65, %66, %67", "%68")
WEIT_PRODUCTS(Half, "f16")
WEIT_PRODUCTS(BFloat16, "bf16")
#undef WEIT_PRODUCTS
#undef WEIT_LEFT
#undef WEIT_SHARED

}  // namespace weit::cuda
