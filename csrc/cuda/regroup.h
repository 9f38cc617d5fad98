// What the kernels of templates_first share: how Z turns into an operand of the second product without leaving its
// registers, and how y is stored.
//
// The first product, [b, k] x [k, (t,a)] for one scaler column j at a time, leaves Z[b,j,t,a] in the fragments of
// matrix instructions: a thread has rows g and g + 8 and columns 2c and 2c + 1 of every eight, with g = lane / 4, c =
// lane % 4. The second product, for each a [b, (j,t)] x [(j,t), i], wants 16 of (j,t) in a left operand, of which a
// thread holds the inner positions 2c, 2c + 1, 2c + 8 and 2c + 9 of the same rows. So the columns of Z are ordered such
// that each thread has what it will pass on, and the inner positions are named to fit: which (j,t) a position means is
// free, as long as S follows. Neither shared memory nor a shuffle is needed.
#pragma once

#include <launch.h>
#include <ptx.h>

#include "element.h"
#include "kernels.h"

namespace weit::cuda {

// For TEMPLATES templates at a time: 4, 8 or 16.
template <int TEMPLATES>
struct Regroup {
  static constexpr int kPaired = TEMPLATES < 8 ? 2 : 1;  // template rows that take turns in the columns of Z
  static constexpr int kScalers = 16 / TEMPLATES;        // scaler columns in 16 inner positions

  // The template row and the template of a column of Z.
  static __device__ int row(int column) { return column / (kPaired * TEMPLATES) * kPaired + column % kPaired; }
  static __device__ int template_of(int column) { return column / kPaired % TEMPLATES; }

  // The template and the scaler column of an inner position, 0 to 15.
  static __device__ int inner_template(int position) {
    return TEMPLATES == 16 ? position : position % 8 / kPaired;
  }
  static __device__ int inner_scaler(int position) {
    return TEMPLATES == 16 ? 0 : position / 8 * kPaired + position % kPaired;
  }

  // Z of the scaler column `scaler` of kScalers, in ascending order, into the left operands of its ROWS template rows.
  template <class T, int ROWS>
  static __device__ __forceinline__ void put(
      uint32_t (&left)[ROWS][4], const float (&z)[ROWS * TEMPLATES / 8][4], int scaler) {
#pragma unroll
    for (int tile = 0; tile < ROWS * TEMPLATES / 8; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // of 16 tokens
        uint32_t word = packed<T>(z[tile][2 * half], z[tile][2 * half + 1]);
        asm volatile("" : "+r"(word));  // here, not where it is needed: the next product's sums take z's registers
        if constexpr (TEMPLATES == 16) {
          left[tile / 2][tile % 2 * 2 + half] = word;
        } else if constexpr (TEMPLATES == 8) {
          left[tile][2 * scaler + half] = word;
        } else {  // a word is one template of two template rows: two scaler columns later, two words of one row each
          uint32_t &even = left[2 * tile][scaler / 2 * 2 + half], &odd = left[2 * tile + 1][scaler / 2 * 2 + half];
          odd = scaler % 2 ? even >> 16 | (word & 0xffff0000) : 0;
          even = scaler % 2 ? (even & 0xffff) | word << 16 : word;
        }
      }
    }
  }
};

// How many of a thread's template rows, of ROWS, store_result() stores as one: at most 16 bytes.
__host__ __device__ constexpr int run_of(int rows) { return rows % 8 == 0 ? 8 : 4; }

// Whether y, and the bias, are aligned such that runs of this length can be stored and loaded as one.
inline bool runs_aligned(const Chain &chain, int run) {
  const auto aligned = [run](const void *pointer) { return reinterpret_cast<uintptr_t>(pointer) % (2 * run) == 0; };
  return chain.p % run == 0 && chain.out % run == 0 && aligned(chain.y) && aligned(chain.bias);
}

// y[b, i, a0 ...] for the ROWS template rows of a thread's sums: tokens `b` and `b + 8`, scaler rows `i` and `i + 1` of
// every eight. `aligned` is what runs_aligned(chain, run_of(ROWS)) says.
template <class T, int ROWS, int OCTETS>
__device__ __forceinline__ void store_result(
    const Chain &chain, const float (&sum)[ROWS][OCTETS][4], int64_t b, int i, int a0, bool aligned) {
  constexpr int kRun = run_of(ROWS);
  using Run = Pack<T, kRun>;
#pragma unroll
  for (int octet = 0; octet < OCTETS; ++octet) {
#pragma unroll
    for (int place = 0; place < 4; ++place) {
      const int64_t token = b + place / 2 * 8;
      const int scaler_row = i + 8 * octet + place % 2;
      if (token >= chain.M || scaler_row >= chain.m) continue;
#pragma unroll
      for (int first = 0; first < ROWS; first += kRun) {
        const int64_t feature = scaler_row * chain.p + a0 + first;
        const int64_t count = min(chain.p - a0 - first, chain.out - feature);
        const bool whole = aligned && count >= kRun;
        const T *bias = chain.bias ? static_cast<const T *>(chain.bias) + feature : nullptr;
        T *y = static_cast<T *>(chain.y) + token * chain.out + feature;
        Run run{};
        if (bias && whole) run = *reinterpret_cast<const Run *>(bias);
#pragma unroll
        for (int a = 0; a < kRun; ++a) {
          if (bias && !whole && a < count) run.values[a] = bias[a];
          narrow(sum[first + a][octet][place] + widened(run.values[a]), run.values[a]);
          if (!whole && a < count) y[a] = run.values[a];
        }
        if (whole) *reinterpret_cast<Run *>(y) = run;
      }
    }
  }
}

// The kernel for sm_90a; cudaErrorNotSupported where the sizes or the alignment do not suit it.
cudaError_t templates_first_sm90(const Chain &chain, const Device &device, cudaStream_t stream);

}  // namespace weit::cuda
