// How y of templates_first_sm90.cu starts, from the bias, and how it leaves.
//
// A warpgroup's sums are those of ROWS template rows and SCALER_ROWS scaler rows of 64 tokens, in the layout of ptx.h's
// multiply_add(): runs of a few numbers in global memory, and one store for each of them would take several times as
// long as all products. So both warpgroups put their sums side by side in shared memory, from where one thread has them
// copied as a box.
#pragma once

#include <hopper.h>

#include "element.h"
#include "kernels.h"

namespace weit::cuda {

template <class E, int ROWS, int SCALER_ROWS>
struct Result {
  static constexpr int kTokens = 64, kConsumers = 256;  // threads of both warpgroups
  static constexpr int kBytes = kTokens * SCALER_ROWS * 2 * ROWS * 2;
  static constexpr int kBiasBytes = SCALER_ROWS * 2 * ROWS * 2;
  using Sums = float[ROWS][SCALER_ROWS / 8][4];

  // The bias of a place's features, [i, a] with the template rows of both warpgroups; zeros where there is none.
  static __device__ __forceinline__ void load_bias(const Chain &c, const void *bias, char *to, int i0, int a0) {
    for (int index = threadIdx.x; index < kBiasBytes / 2; index += kConsumers) {
      const int i = i0 + index / (2 * ROWS), a = a0 + index % (2 * ROWS);
      const int64_t feature = i * c.p + a;
      E value;
      narrow(0, value);
      if (bias && a < c.p && feature < c.out) value = static_cast<const E *>(bias)[feature];
      reinterpret_cast<E *>(to)[index] = value;
    }
  }

  static __device__ __forceinline__ void start(Sums &sum, const char *bias, int group, int lane) {
    using Four = Pack<E, 4>;
#pragma unroll
    for (int octet = 0; octet < SCALER_ROWS / 8; ++octet)
#pragma unroll
      for (int odd = 0; odd < 2; ++odd)
#pragma unroll
        for (int first = 0; first < ROWS; first += 4) {
          const int i = 8 * octet + lane % 4 * 2 + odd, at = (2 * i + group) * ROWS + first;
          const Four four = *reinterpret_cast<const Four *>(bias + 2 * at);
#pragma unroll
          for (int a = 0; a < 4; ++a)
            sum[first + a][octet][odd] = sum[first + a][octet][odd + 2] = widened(four.values[a]);
        }
  }

  // [i, b, a] in shared memory at `y`, and from there to the map's axes (a, b, i). `barrier` is one of both groups; the
  // block's first thread calls stores_wait() before its shared memory ends.
  static __device__ __forceinline__ void store(
      const TensorMap &map, char *y, const Sums &sum, int barrier, int a0, int i0, int b0) {
    const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    if (threadIdx.x == 0) stores_wait();
    sync_threads(barrier, kConsumers);
#pragma unroll
    for (int octet = 0; octet < SCALER_ROWS / 8; ++octet)
#pragma unroll
      for (int place = 0; place < 4; ++place)
#pragma unroll
        for (int first = 0; first < ROWS; first += 4) {
          const int i = 8 * octet + lane % 4 * 2 + place % 2, b = warp * 16 + lane / 4 + place / 2 * 8;
          uint2 four;
          four.x = packed<E>(sum[first][octet][place], sum[first + 1][octet][place]);
          four.y = packed<E>(sum[first + 2][octet][place], sum[first + 3][octet][place]);
          *reinterpret_cast<uint2 *>(y + 2 * ((2 * (i * kTokens + b) + group) * ROWS + first)) = four;
        }
    show_to_products();
    sync_threads(barrier, kConsumers);
    if (threadIdx.x == 0) store_box(y, map, a0, b0, i0);
  }
};

}  // namespace weit::cuda
