// What the driver (chain.cpp) and the kernels, compiled once an instruction set, agree on. Free of torch and of the
// standard library: what a kernel file instantiates must not be shared with files compiled for an older machine.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace weit {

// One call. With x (M, in), dy (M, out), T (N, p, q), S (N, m, n), everything that follows from
//
//     Z[b,j,t,a] = sum_k T[t,a,k] x[b,j,k]        V[b,j,t,a] = sum_i S[t,i,j] dy[b,i,a]
//
//     y  = sum_{t,j} S Z      dx = sum_{t,a} T V      dT = sum_{b,j} V x      dS = sum_{b,a} dy Z
//
// Templates first is y (forward) and dx, dT, dS (backward). Scalers first is the same with S and T transposed and x
// and dy exchanged: its forward product is this dx. The strides say which of the two it is.
struct Job {
  int64_t M, N, m, n, p, q, in, out;
  const void *x, *dy, *T, *S;
  int64_t T_a, T_k, S_i, S_j;  // strides of T in a and k, of S in i and j
  void *y, *dx;                // wanted where not null
  const void *y_bias, *dx_bias;
  bool dT, dS;

  // Filled in by the driver.
  void *packed_Z, *packed_dx;  // T in the order in which Z and dx read it; null: pack where it is used
  void *S_mix, *S_unmix;       // S as [t, j, i] and [i, t, j]
  int64_t *rows;               // row of (t, j) in Z and V, in steps of one panel row
  int64_t block;               // most tokens at a time
};

// The part of a job that one core does on its own: tokens b, panels of a (for y), panels of k (for dx).
struct Part {
  int64_t b0, b1, a0, a1, k0, k1;
  void *dT, *dS;  // this part's accumulators, zeroed
  void *scratch;
};

// One element type on one instruction set. Sizes are in bytes.
struct Kernels {
  int64_t width;     // columns of a panel
  int64_t sum_size;  // of a number in the accumulators
  int64_t (*packed_Z_size)(const Job &);
  int64_t (*packed_dx_size)(const Job &);
  int64_t (*block_size)(const Job &, int64_t tokens);  // scratch for a block of so many tokens
  void (*pack_S)(Job &);
  void (*pack_T)(const Job &, int64_t t, int64_t a_panel);
  void (*run)(const Job &, const Part &);
  void (*finish_dT)(const Job &, const void *sums, int64_t parts, int64_t t, int64_t a_panel, void *dT);
  void (*finish_dS)(const Job &, const void *sums, int64_t parts, void *dS);
};

enum Element { kFloat, kDouble, kBFloat16 };

const Kernels &generic_kernels(Element);
#ifdef __x86_64__
const Kernels &avx2_kernels(Element);
const Kernels &avx512_kernels(Element);
const Kernels &avx512_bf16_kernels();  // bfloat16 products in hardware
#endif

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace weit
