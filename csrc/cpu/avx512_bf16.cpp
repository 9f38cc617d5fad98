// bfloat16 kernels for x86 with AVX512-BF16: the large products add pairs of 16-bit products to 32-bit sums.
#ifdef __x86_64__
#define LANE_BYTES 64
#define MAX_ROWS 12
#define DOT_ROWS 4
#define DOT_COLUMNS 5

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "target.h"

WEIT_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")
#include "block.h"

namespace {

struct PairDot {
  using Element = BFloat16;
  using Word = uint32_t;  // two neighbours on the inner axis
  using Sum = float;
  using V = typename Vector<float>::type;
  static constexpr int kPack = 2;
  static constexpr int kLanes = LANE_BYTES / sizeof(float);
  static inline V step(V sum, Word a, const Word *b) {
    const __m512i left = _mm512_set1_epi32(int(a)), right = _mm512_load_si512(b);
    return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
  }
};

}  // namespace

namespace weit {
const Kernels &avx512_bf16_kernels() {
  static constexpr Kernels kTable = Chain<BFloat16, PairDot>::table();
  return kTable;
}
}  // namespace weit
WEIT_TARGET_END
#endif
