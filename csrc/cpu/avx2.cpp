// Kernels for x86 with AVX2 and FMA: 16 registers of 256 bits, 12 of them for sums.
#ifdef __x86_64__
#define LANE_BYTES 32
#define MAX_ROWS 6
#define DOT_ROWS 3
#define DOT_COLUMNS 3

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "target.h"

WEIT_TARGET_BEGIN("avx2,fma")
#include "kernels.h"

namespace weit {
const Kernels &avx2_kernels(const Job &job, Element element) { return kernels_of(job, element); }
}  // namespace weit
WEIT_TARGET_END
#endif
