// Kernels for any machine: 128-bit vectors, which every 64-bit x86 and ARM has.
#define LANE_BYTES 16
#define MAX_ROWS 6
#define DOT_ROWS 3
#define DOT_COLUMNS 3

#include "block.h"

namespace weit {
const Kernels &generic_kernels(Element element) { return kernels_for(element); }
}  // namespace weit
