// T and S in the order in which the products read them. See chain.h for the formulas, tiles.h for panels.
#pragma once

#include "chain.h"
#include "pack.h"

namespace {

using weit::ceil_div;
using weit::Job;
using weit::matrices;

// E: element of the caller's tensors. Op: how products multiply.
//
// With an Op that adds pairs of products (kPairs), panels hold 16-bit numbers and sums are 32-bit: what a second
// product reads is rounded to 16 bits, as between two layers; where rows are its inner axis, two rows are interleaved.
// Without, panels hold what is summed.
template <class E, class Op>
struct Factors {
  using O = typename Op::Element;
  using W = typename Op::Word;
  using A = typename Op::Sum;
  static constexpr int kWidth = 2 * Op::kLanes, kPack = Op::kPack;
  static constexpr bool kPairs = kPack == 2;
  static constexpr int64_t kSquare = kWidth * kWidth;

  static int64_t words(int64_t elements) { return (elements + kPack - 1) / kPack; }
  static int64_t even(int64_t rows) { return words(rows) * kPack; }
  static const W *word(const O *p) { return reinterpret_cast<const W *>(p); }

  // T as Z reads it: [a panel][matrix][k][a in panel]. As dx reads it: [a panel][k panel][matrix][a in panel][k in
  // panel]. Of several taps each begins a panel of k, so that all stretches of a product are alike.
  static int64_t z_rows(const Job &job) {
    return matrices(job) > job.N ? ceil_div(job.q, kWidth) * kWidth : even(job.q);
  }
  static int64_t z_panel(const Job &job) { return matrices(job) * z_rows(job) * kWidth; }
  static int64_t dx_panel(const Job &job) { return ceil_div(job.q, kWidth) * matrices(job) * kSquare; }
  static int64_t packed_Z_size(const Job &job) {
    return ceil_div(job.p, kWidth) * z_panel(job) * int64_t(sizeof(O));
  }
  static int64_t packed_dx_size(const Job &job) {
    return ceil_div(job.p, kWidth) * dx_panel(job) * int64_t(sizeof(O));
  }

  static void pack_for_Z(const Job &job, int64_t u, int64_t ap, O *to) {  // to: this panel, all matrices
    const int64_t valid = clamp(job.p - ap * kWidth, kWidth);
    const E *from = static_cast<const E *>(job.T) + u * job.p * job.q + ap * kWidth * job.T_a;
    to += u * z_rows(job) * kWidth;
    if constexpr (kPairs)
      pack_pairs<kWidth>(from, job.T_k, job.T_a, job.q, valid, to);
    else
      pack_panel<kWidth>(from, job.T_k, job.T_a, job.q, valid, to);
    memset(to + even(job.q) * kWidth, 0, (z_rows(job) - even(job.q)) * kWidth * sizeof(O));
  }

  static void pack_for_dx(const Job &job, int64_t u, int64_t ap, int64_t kp, O *to) {  // to: this square
    const int64_t rows = clamp(job.p - ap * kWidth, kWidth), valid = clamp(job.q - kp * kWidth, kWidth);
    const E *from = static_cast<const E *>(job.T) + u * job.p * job.q + ap * kWidth * job.T_a + kp * kWidth * job.T_k;
    if constexpr (kPairs)
      pack_pairs<kWidth>(from, job.T_a, job.T_k, rows, valid, to);
    else
      pack_panel<kWidth>(from, job.T_a, job.T_k, rows, valid, to);
  }

  static void pack_T(const Job &job, int64_t u, int64_t ap) {
    if (job.packed_Z) pack_for_Z(job, u, ap, static_cast<O *>(job.packed_Z) + ap * z_panel(job));
    if (!job.packed_dx) return;
    O *to = static_cast<O *>(job.packed_dx) + ap * dx_panel(job) + u * kSquare;
    for (int64_t kp = 0; kp * kWidth < job.q; ++kp, to += matrices(job) * kSquare) pack_for_dx(job, u, ap, kp, to);
  }

  // S as y reads it: [t][j][i], as V reads it: [i][t][j]; with pairs, two neighbours in j (in i) side by side.
  static void pack_S(Job &job) {
    O *mix = static_cast<O *>(job.S_mix), *unmix = static_cast<O *>(job.S_unmix);
    const int64_t columns = job.N * job.n, panel = weit::dy_tokens(job, job.block) * job.n;
    if (mix) memset(mix, 0, job.N * even(job.n) * job.m * sizeof(O));
    if (unmix) memset(unmix, 0, columns * even(job.m) * sizeof(O));
    for (int64_t t = 0; t < job.N; ++t) {
      for (int64_t j = 0; j < job.n; ++j) {
        const int64_t c = t * job.n + j, row = t * even(job.n) + j;
        job.rows[c] = t * panel + j;
        for (int64_t i = 0; i < job.m; ++i) {
          const E s = static_cast<const E *>(job.S)[t * job.m * job.n + i * job.S_i + j * job.S_j];
          if (mix) narrow(s, mix[(row / kPack * job.m + i) * kPack + row % kPack]);
          if (unmix) narrow(s, unmix[(i / kPack * columns + c) * kPack + i % kPack]);
        }
      }
    }
  }
};

}  // namespace
