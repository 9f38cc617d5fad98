// Kernels for x86 with AVX-512: 32 registers of 512 bits, 24 of them for sums.
#ifdef __x86_64__
#define LANE_BYTES 64
#define MAX_ROWS 12
#define DOT_ROWS 4
#define DOT_COLUMNS 5

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "target.h"

WEIT_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,fma")
#include "kernels.h"

namespace weit {
const Kernels &avx512_kernels(const Job &job, Element element) { return kernels_of(job, element); }
}  // namespace weit
WEIT_TARGET_END
#endif
