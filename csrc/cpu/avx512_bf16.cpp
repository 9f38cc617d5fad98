// bfloat16 kernels for x86 with AVX512-BF16: products add pairs of 16-bit products to 32-bit sums.
#ifdef __x86_64__
#define LANE_BYTES 64
#define MAX_ROWS 12
#define DOT_ROWS 4
#define DOT_COLUMNS 5
#define HARDWARE_BF16

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "target.h"

WEIT_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")
#include "kernels.h"

namespace {

struct PairDot {
  using Element = BFloat16;
  using Word = uint32_t;  // two neighbours on the inner axis
  using Sum = float;
  using V = typename Vector<float>::type;
  using Words = typename Vector<Word>::type;
  typedef uint16_t Halves __attribute__((vector_size(LANE_BYTES / 2)));
  static constexpr int kPack = 2;
  static constexpr int kLanes = LANE_BYTES / sizeof(float);
  static inline V dot(V sum, __m512i left, const Word *b) {
    return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)_mm512_load_si512(b));
  }
  static inline V step(V sum, Word a, const Word *b) { return dot(sum, _mm512_set1_epi32(int(a)), b); }
  static inline V step(V sum, const Word *a, const Word *b) { return dot(sum, _mm512_load_si512(a), b); }

  // Two panel rows of sums, rounded and interleaved; zeros stand in for a second row that is missing.
  static inline void narrow_pair(const float *from, bool second, Element *to) {
    for (int c = 0; c < 2 * kLanes; c += kLanes, to += 2 * kLanes) {
      const __m256bh low = _mm512_cvtneps_pbh(_mm512_load_ps(from + c));
      Words pairs = __builtin_convertvector((Halves)low, Words);
      if (second) {
        const __m256bh high = _mm512_cvtneps_pbh(_mm512_load_ps(from + 2 * kLanes + c));
        pairs |= __builtin_convertvector((Halves)high, Words) << 16;
      }
      _mm512_store_si512(to, (__m512i)pairs);
    }
  }
};

}  // namespace

namespace weit {
const Kernels &avx512_bf16_kernels(const Job &job) { return kernels_of<BFloat16, PairDot>(job); }
}  // namespace weit
WEIT_TARGET_END
#endif
