// float16 for the emulator.
#pragma once

#include <stdint.h>
#include <string.h>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half v) {
  _Float16 f;
  memcpy(&f, &v, 2);
  return float(f);
}

inline __half __float2half_rn(float v) {
  const _Float16 f = _Float16(v);
  __half h;
  memcpy(&h, &f, 2);
  return h;
}
