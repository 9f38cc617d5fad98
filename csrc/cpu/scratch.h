// One buffer in pieces.
#pragma once

#include <stdint.h>

namespace {

// Hands out aligned pieces of one buffer, null for none; without a buffer it only counts.
struct Scratch {
  char *base;
  int64_t used = 0;
  template <class U>
  U *take(int64_t count) {
    U *piece = base && count ? reinterpret_cast<U *>(base + used) : nullptr;
    used += (count * int64_t(sizeof(U)) + 63) / 64 * 64;
    return piece;
  }
};

}  // namespace
