// The chain of products over blocks of tokens, on one core: everything between reading x (or dy) and writing the
// result stays in this core's cache. See chain.h for the formulas, tiles.h for panels.
#pragma once

#include "chain.h"
#include "pack.h"
#include "sums.h"

namespace {

using weit::ceil_div;
using weit::Job;
using weit::Part;

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

// E: element of the caller's tensors. Op: how products multiply.
//
// With an Op that adds pairs of products (kPairs), panels hold 16-bit numbers and sums are 32-bit: what a second
// product reads is rounded to 16 bits, as between two layers; where rows are its inner axis, two rows are interleaved.
// Without, panels hold what is summed.
template <class E, class Op>
struct Chain {
  using O = typename Op::Element;
  using W = typename Op::Word;
  using A = typename Op::Sum;
  static constexpr int kWidth = 2 * Op::kLanes, kPack = Op::kPack;
  static constexpr bool kPairs = kPack == 2;
  static constexpr int64_t kSquare = kWidth * kWidth;
  static constexpr int64_t kChain = 256;  // terms that a sum over tokens takes one after the other

  static int64_t words(int64_t elements) { return (elements + kPack - 1) / kPack; }
  static int64_t even(int64_t rows) { return words(rows) * kPack; }
  static const W *word(const O *p) { return reinterpret_cast<const W *>(p); }

  // T as Z reads it: [a panel][t][k][a in panel]. As dx reads it: [a panel][k panel][t][a in panel][k in panel].
  static int64_t z_panel(const Job &job) { return job.N * even(job.q) * kWidth; }
  static int64_t dx_panel(const Job &job) { return ceil_div(job.q, kWidth) * job.N * kSquare; }
  static int64_t packed_Z_size(const Job &job) {
    return ceil_div(job.p, kWidth) * z_panel(job) * int64_t(sizeof(O));
  }
  static int64_t packed_dx_size(const Job &job) {
    return ceil_div(job.p, kWidth) * dx_panel(job) * int64_t(sizeof(O));
  }

  static void pack_for_Z(const Job &job, int64_t t, int64_t ap, O *to) {  // to: this panel, all t
    const int64_t valid = clamp(job.p - ap * kWidth, kWidth);
    const E *from = static_cast<const E *>(job.T) + t * job.p * job.q + ap * kWidth * job.T_a;
    to += t * even(job.q) * kWidth;
    if constexpr (kPairs)
      pack_pairs<kWidth>(from, job.T_k, job.T_a, job.q, valid, to);
    else
      pack_panel<kWidth>(from, job.T_k, job.T_a, job.q, valid, to);
  }

  static void pack_for_dx(const Job &job, int64_t t, int64_t ap, int64_t kp, O *to) {  // to: this square
    const int64_t rows = clamp(job.p - ap * kWidth, kWidth), valid = clamp(job.q - kp * kWidth, kWidth);
    const E *from = static_cast<const E *>(job.T) + t * job.p * job.q + ap * kWidth * job.T_a + kp * kWidth * job.T_k;
    if constexpr (kPairs)
      pack_pairs<kWidth>(from, job.T_a, job.T_k, rows, valid, to);
    else
      pack_panel<kWidth>(from, job.T_a, job.T_k, rows, valid, to);
  }

  static void pack_T(const Job &job, int64_t t, int64_t ap) {
    if (job.packed_Z) pack_for_Z(job, t, ap, static_cast<O *>(job.packed_Z) + ap * z_panel(job));
    if (!job.packed_dx) return;
    O *to = static_cast<O *>(job.packed_dx) + ap * dx_panel(job) + t * kSquare;
    for (int64_t kp = 0; kp * kWidth < job.q; ++kp, to += job.N * kSquare) pack_for_dx(job, t, ap, kp, to);
  }

  // S as y reads it: [t][j][i], as V reads it: [i][t][j]; with pairs, two neighbours in j (in i) side by side.
  static void pack_S(Job &job) {
    O *mix = static_cast<O *>(job.S_mix), *unmix = static_cast<O *>(job.S_unmix);
    const int64_t columns = job.N * job.n;
    if (mix) memset(mix, 0, job.N * even(job.n) * job.m * sizeof(O));
    if (unmix) memset(unmix, 0, columns * even(job.m) * sizeof(O));
    for (int64_t t = 0; t < job.N; ++t) {
      for (int64_t j = 0; j < job.n; ++j) {
        const int64_t c = t * job.n + j, row = t * even(job.n) + j;
        job.rows[c] = t * job.block * job.n + j;
        for (int64_t i = 0; i < job.m; ++i) {
          const E s = static_cast<const E *>(job.S)[t * job.m * job.n + i * job.S_i + j * job.S_j];
          if (mix) narrow(s, mix[(row / kPack * job.m + i) * kPack + row % kPack]);
          if (unmix) narrow(s, unmix[(i / kPack * columns + c) * kPack + i % kPack]);
        }
      }
    }
  }

  // What one block of tokens needs besides T.
  struct Room {
    O *x, *x_pairs, *v, *v_pairs, *z_pairs, *dy, *dy_pairs, *z, *local;
    A *dx, *sums;
    Room(Scratch &s, const Job &job, int64_t tokens) {
      const bool z_too = job.y || job.dS, v_too = job.dx || job.dT;
      const int64_t rows = tokens * job.n, k_panels = ceil_div(job.q, kWidth);
      x = s.take<O>(z_too || job.dT ? k_panels * rows * kWidth : 0);
      x_pairs = s.take<O>(kPairs && job.dT ? k_panels * even(rows) * kWidth : 0);
      v = s.take<O>(v_too ? job.N * rows * kWidth : 0);
      v_pairs = s.take<O>(kPairs && job.dT ? even(rows) * kWidth : 0);
      z = s.take<O>(job.dS || (z_too && !kPairs) ? job.N * rows * kWidth : 0);
      z_pairs = s.take<O>(kPairs && job.y ? job.N * tokens * even(job.n) * kWidth : 0);
      dy = s.take<O>(v_too || job.dS ? tokens * job.m * kWidth : 0);
      dy_pairs = s.take<O>(kPairs && v_too ? even(job.m) * kWidth : 0);
      dx = s.take<A>(job.dx ? k_panels * rows * kWidth : 0);
      int64_t most = kPairs && z_too ? rows : 0;  // rows of sums on their way to where they are wanted
      if (job.y && job.m > most) most = job.m;
      if (kPairs && v_too && job.N * job.n > most) most = job.N * job.n;
      sums = s.take<A>(most * kWidth);
      const bool pack_Z = z_too && !job.packed_Z, pack_dx = job.dx && !job.packed_dx;
      const int64_t for_Z = pack_Z ? z_panel(job) : 0, for_dx = pack_dx ? job.N * kSquare : 0;
      local = s.take<O>(for_Z > for_dx ? for_Z : for_dx);  // one after the other
    }
  };

  static int64_t block_size(const Job &job, int64_t tokens) {
    Scratch count{nullptr};
    Room room(count, job, tokens);
    return count.used;
  }

  static void pack_x(const Job &job, int64_t b0, int64_t tokens, Room &room) {
    const E *from = static_cast<const E *>(job.x) + b0 * job.in;
    const int64_t stride = job.block * job.n * kWidth, k_panels = ceil_div(job.q, kWidth), rows = tokens * job.n;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t b = r / job.n, j = r % job.n, valid = clamp(job.in - j * job.q, job.q);
      const E *row = from + b * job.in + j * job.q;
      for (int64_t kp = 0; kp < k_panels; ++kp) {
        pack_row<kWidth>(row + kp * kWidth, clamp(valid - kp * kWidth, kWidth), room.x + kp * stride + r * kWidth);
      }
    }
    if constexpr (kPairs) {
      if (!job.dT) return;
      for (int64_t kp = 0; kp < k_panels; ++kp)
        pair_rows<kWidth>(room.x + kp * stride, rows, room.x_pairs + kp * even(job.block * job.n) * kWidth);
    }
  }

  static void pack_dy(const Job &job, int64_t b0, int64_t tokens, int64_t ap, O *to) {
    const E *row = static_cast<const E *>(job.dy) + b0 * job.out + ap * kWidth;
    for (int64_t b = 0; b < tokens; ++b, row += job.out) {
      for (int64_t i = 0; i < job.m; ++i, to += kWidth) {
        const int64_t first = i * job.p + ap * kWidth, last = (i + 1) * job.p < job.out ? (i + 1) * job.p : job.out;
        pack_row<kWidth>(row + i * job.p, clamp(last - first, kWidth), to);
      }
    }
  }

  static void make_z(const Job &job, int64_t tokens, int64_t ap, const Room &room) {
    const O *packed = job.packed_Z ? static_cast<const O *>(job.packed_Z) + ap * z_panel(job) : room.local;
    if (!job.packed_Z) {
      for (int64_t t = 0; t < job.N; ++t) pack_for_Z(job, t, ap, room.local);
    }
    const int64_t k_panels = ceil_div(job.q, kWidth), panel = job.block * job.n * kWidth;
    const Stretches along{k_panels, words(kWidth), words(job.q - (k_panels - 1) * kWidth), words(kSquare)};
    for (int64_t t = 0; t < job.N; ++t) {
      const W *T = word(packed + t * even(job.q) * kWidth);
      if constexpr (kPairs) {
        product<Op, false>(word(room.x), words(panel), T, along, room.sums, nullptr, tokens * job.n, false);
        for (int64_t r = 0; room.z && r < tokens * job.n; ++r)
          Op::narrow(room.sums + r * kWidth, room.z + t * panel + r * kWidth);
        for (int64_t b = 0; room.z_pairs && b < tokens; ++b) {
          O *to = room.z_pairs + (t * job.block + b) * even(job.n) * kWidth;
          for (int64_t j = 0; j < job.n; j += 2, to += 2 * kWidth)
            Op::narrow_pair(room.sums + (b * job.n + j) * kWidth, j + 1 < job.n, to);
        }
      } else {
        product<Op, false>(word(room.x), words(panel), T, along, room.z + t * panel, nullptr, tokens * job.n, false);
      }
    }
  }

  static void mix_y(const Job &job, int64_t b0, int64_t tokens, int64_t ap, const Room &room) {
    const int64_t token = even(job.n) * kWidth;
    const Stretches down{job.N, words(job.n), words(job.n), words(job.block * token)};
    const E *bias = static_cast<const E *>(job.y_bias);
    const O *S = static_cast<const O *>(job.S_mix), *z = kPairs ? room.z_pairs : room.z;
    for (int64_t b = 0; b < tokens; ++b) {
      product<Op, true>(word(S), job.m, word(z + b * token), down, room.sums, nullptr, job.m, false);
      E *row = static_cast<E *>(job.y) + (b0 + b) * job.out;
      for (int64_t i = 0; i < job.m; ++i) {
        const int64_t at = i * job.p + ap * kWidth, last = (i + 1) * job.p < job.out ? (i + 1) * job.p : job.out;
        store_row<kWidth>(room.sums + i * kWidth, bias ? bias + at : nullptr, clamp(last - at, kWidth), row + at);
      }
    }
  }

  static void make_v(const Job &job, int64_t tokens, const Room &room) {
    const int64_t columns = job.N * job.n;
    const Stretches down{1, words(job.m), words(job.m), 0};
    const O *S = static_cast<const O *>(job.S_unmix);
    for (int64_t b = 0; b < tokens; ++b) {
      const O *dy = room.dy + b * job.m * kWidth;
      O *v = room.v + b * job.n * kWidth;
      if constexpr (kPairs) {
        pair_rows<kWidth>(dy, job.m, room.dy_pairs);
        product<Op, true>(word(S), columns, word(room.dy_pairs), down, room.sums, nullptr, columns, false);
        for (int64_t c = 0; c < columns; ++c) Op::narrow(room.sums + c * kWidth, v + job.rows[c] * kWidth);
      } else {
        product<Op, true>(S, columns, dy, down, v, job.rows, columns, false);
      }
    }
  }

  static void add_dx(const Job &job, const Part &part, int64_t tokens, int64_t ap, const Room &room) {
    const int64_t inner = words(clamp(job.p - ap * kWidth, kWidth)), panel = job.block * job.n * kWidth;
    const Stretches along{job.N, inner, inner, words(kSquare)};
    for (int64_t kp = part.k0; kp < part.k1; ++kp) {
      const O *packed = room.local;
      if (job.packed_dx) {
        packed = static_cast<const O *>(job.packed_dx) + ap * dx_panel(job) + kp * job.N * kSquare;
      } else {
        for (int64_t t = 0; t < job.N; ++t) pack_for_dx(job, t, ap, kp, room.local + t * kSquare);
      }
      product<Op, false>(
          word(room.v), words(panel), word(packed), along, room.dx + kp * panel, nullptr, tokens * job.n, ap > 0);
    }
  }

  static void store_dx(const Job &job, const Part &part, int64_t b0, int64_t tokens, const Room &room) {
    const E *bias = static_cast<const E *>(job.dx_bias);
    const A *from = room.dx;
    const int64_t stride = job.block * job.n * kWidth;
    E *row = static_cast<E *>(job.dx) + b0 * job.in;
    for (int64_t b = 0; b < tokens; ++b, row += job.in) {
      for (int64_t j = 0; j < job.n; ++j, from += kWidth) {
        const int64_t last = (j + 1) * job.q < job.in ? (j + 1) * job.q : job.in;
        for (int64_t kp = part.k0; kp < part.k1; ++kp) {
          const int64_t at = j * job.q + kp * kWidth;
          store_row<kWidth>(from + kp * stride, bias ? bias + at : nullptr, clamp(last - at, kWidth), row + at);
        }
      }
    }
  }

  // Accumulators of dT: [a panel][t][k][a in panel].
  static void add_dT(const Job &job, A *total, int64_t tokens, int64_t ap, const Room &room) {
    const int64_t rows = tokens * job.n, most = job.block * job.n;
    for (int64_t t = 0; t < job.N; ++t) {
      const O *v = room.v + t * most * kWidth, *x = room.x;
      int64_t x_stride = most * kWidth;
      if constexpr (kPairs) {
        pair_rows<kWidth>(v, rows, room.v_pairs);
        v = room.v_pairs, x = room.x_pairs, x_stride = even(most) * kWidth;
      }
      A *to = total + (ap * job.N + t) * job.q * kWidth;
      for (int64_t k = 0; k < job.q; k += kWidth, x += x_stride, to += kSquare)
        for (int64_t r = 0; r < rows; r += kChain) {
          const int64_t length = words(rows - r < kChain ? rows - r : kChain);
          product<Op, true>(
              word(x + r * kWidth), kWidth, word(v + r * kWidth), {1, length, length, 0}, to, nullptr,
              clamp(job.q - k, kWidth), true);
        }
    }
  }

  static void run(const Job &job, const Part &part) {
    Scratch scratch{static_cast<char *>(part.scratch)};
    Room room(scratch, job, job.block);
    for (int64_t b = part.b0; b < part.b1; b += job.block) {
      const int64_t tokens = part.b1 - b < job.block ? part.b1 - b : job.block;
      if (room.x) pack_x(job, b, tokens, room);
      for (int64_t ap = part.a0; ap < part.a1; ++ap) {
        if (job.y || job.dS) make_z(job, tokens, ap, room);
        if (job.y) mix_y(job, b, tokens, ap, room);
        if (room.dy) pack_dy(job, b, tokens, ap, room.dy);
        if (job.dS) {
          dots<Op>(
              word(room.dy), job.m, word(room.z), job.rows, job.N * job.n, words(job.n * kWidth), tokens,
              static_cast<A *>(part.dS));
        }
        if (room.v) make_v(job, tokens, room);
        if (job.dx) add_dx(job, part, tokens, ap, room);
        if (job.dT) add_dT(job, static_cast<A *>(part.dT), tokens, ap, room);
      }
      if (job.dx) store_dx(job, part, b, tokens, room);
    }
  }

  static constexpr weit::Kernels table() {
    return {kWidth, sizeof(A), packed_Z_size, packed_dx_size, block_size, pack_S, pack_T, run,
            finish_dT<E, A, kWidth>, finish_dS<E, A>};
  }
};

inline const weit::Kernels &kernels_for(weit::Element element) {
  static constexpr weit::Kernels kFloats = Chain<float, MultiplyAdd<float>>::table();
  static constexpr weit::Kernels kDoubles = Chain<double, MultiplyAdd<double>>::table();
  static constexpr weit::Kernels kHalves = Chain<BFloat16, MultiplyAdd<float>>::table();
  return element == weit::kFloat ? kFloats : element == weit::kDouble ? kDoubles : kHalves;
}

}  // namespace
