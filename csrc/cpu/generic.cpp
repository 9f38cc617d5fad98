// Kernels for any machine: 128-bit vectors, which every 64-bit x86 and ARM has.
#define LANE_BYTES 16
#define MAX_ROWS 6
#define DOT_ROWS 3
#define DOT_COLUMNS 3

#include "kernels.h"

namespace weit {
const Kernels &generic_kernels(const Job &job, Element element) { return kernels_of(job, element); }
}  // namespace weit
