// The chain of products over blocks of tokens, on one core: everything between reading x (or dy) and writing the
// result stays in this core's cache. See chain.h for the formulas, tiles.h for panels.
#pragma once

#include "chain.h"
#include "pack.h"

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

// E: element of the caller's tensors. Op: how the two large products multiply. Mix: the same for the small ones, whose
// operands are sums already.
template <class E, class Op>
struct Chain {
  using O = typename Op::Element;
  using W = typename Op::Word;
  using A = typename Op::Sum;
  using Mix = MultiplyAdd<A>;
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
    if constexpr (kPairs) {
      O rows[2 * kWidth];
      for (int64_t k = 0; k < job.q; k += 2, to += 2 * kWidth) {
        const int64_t count = job.q - k < 2 ? 1 : 2;
        pack_panel<kWidth>(from + k * job.T_k, job.T_k, job.T_a, count, valid, rows);
        pair_rows<kWidth>(rows, count, to);
      }
    } else {
      pack_panel<kWidth>(from, job.T_k, job.T_a, job.q, valid, to);
    }
  }

  static void pack_for_dx(const Job &job, int64_t t, int64_t ap, int64_t kp, O *to) {  // to: this square
    const int64_t rows = clamp(job.p - ap * kWidth, kWidth), valid = clamp(job.q - kp * kWidth, kWidth);
    const E *from = static_cast<const E *>(job.T) + t * job.p * job.q + ap * kWidth * job.T_a + kp * kWidth * job.T_k;
    if constexpr (kPairs) {
      O square[kSquare];
      pack_panel<kWidth>(from, job.T_a, job.T_k, rows, valid, square);
      pair_rows<kWidth>(square, rows, to);
    } else {
      pack_panel<kWidth>(from, job.T_a, job.T_k, rows, valid, to);
    }
  }

  static void pack_T(const Job &job, int64_t t, int64_t ap) {
    if (job.packed_Z) pack_for_Z(job, t, ap, static_cast<O *>(job.packed_Z) + ap * z_panel(job));
    if (!job.packed_dx) return;
    O *to = static_cast<O *>(job.packed_dx) + ap * dx_panel(job) + t * kSquare;
    for (int64_t kp = 0; kp * kWidth < job.q; ++kp, to += job.N * kSquare) pack_for_dx(job, t, ap, kp, to);
  }

  static void pack_S(Job &job) {
    A *mix = static_cast<A *>(job.S_mix), *unmix = static_cast<A *>(job.S_unmix);
    for (int64_t t = 0; t < job.N; ++t) {
      for (int64_t j = 0; j < job.n; ++j) {
        job.rows[t * job.n + j] = t * job.block * job.n + j;
        for (int64_t i = 0; i < job.m; ++i) {
          const E s = static_cast<const E *>(job.S)[t * job.m * job.n + i * job.S_i + j * job.S_j];
          if (mix) mix[(t * job.n + j) * job.m + i] = widened(s);
          if (unmix) unmix[i * job.N * job.n + t * job.n + j] = widened(s);
        }
      }
    }
  }

  // What one block of tokens needs besides T.
  struct Room {
    O *x, *x_pairs, *v, *v_pairs, *local;
    A *z, *dy, *dx, *token;
    Room(Scratch &s, const Job &job, int64_t tokens) {
      const bool z_too = job.y || job.dS, v_too = job.dx || job.dT;
      const int64_t rows = tokens * job.n, k_panels = ceil_div(job.q, kWidth), columns = job.N * job.n;
      const int64_t most = columns > job.m ? columns : job.m;
      x = s.take<O>(z_too || job.dT ? k_panels * rows * kWidth : 0);
      x_pairs = s.take<O>(kPairs && job.dT ? k_panels * even(rows) * kWidth : 0);
      v = s.take<O>(v_too ? job.N * rows * kWidth : 0);
      v_pairs = s.take<O>(kPairs && job.dT ? even(rows) * kWidth : 0);
      z = s.take<A>(z_too ? job.N * rows * kWidth : 0);
      dy = s.take<A>(v_too || job.dS ? tokens * job.m * kWidth : 0);
      dx = s.take<A>(job.dx ? k_panels * rows * kWidth : 0);
      token = s.take<A>(most * kWidth);
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

  static void pack_dy(const Job &job, int64_t b0, int64_t tokens, int64_t ap, A *to) {
    const E *row = static_cast<const E *>(job.dy) + b0 * job.out + ap * kWidth;
    for (int64_t b = 0; b < tokens; ++b, row += job.out) {
      for (int64_t i = 0; i < job.m; ++i, to += kWidth) {
        const int64_t first = i * job.p + ap * kWidth, last = (i + 1) * job.p < job.out ? (i + 1) * job.p : job.out;
        pack_row<kWidth>(row + i * job.p, clamp(last - first, kWidth), to);
      }
    }
  }

  static void make_z(const Job &job, int64_t tokens, int64_t ap, Room &room) {
    const O *packed = job.packed_Z ? static_cast<const O *>(job.packed_Z) + ap * z_panel(job) : room.local;
    if (!job.packed_Z) {
      for (int64_t t = 0; t < job.N; ++t) pack_for_Z(job, t, ap, room.local);
    }
    const int64_t k_panels = ceil_div(job.q, kWidth), panel = job.block * job.n * kWidth;
    const Stretches along{k_panels, words(kWidth), words(job.q - (k_panels - 1) * kWidth), words(kSquare)};
    for (int64_t t = 0; t < job.N; ++t) {
      product<Op, false>(
          word(room.x), words(panel), word(packed + t * even(job.q) * kWidth), along, room.z + t * panel, nullptr,
          tokens * job.n, false);
    }
  }

  static void mix_y(const Job &job, int64_t b0, int64_t tokens, int64_t ap, const Room &room) {
    const Stretches down{job.N, job.n, job.n, job.block * job.n * kWidth};
    const E *bias = static_cast<const E *>(job.y_bias);
    for (int64_t b = 0; b < tokens; ++b) {
      product<Mix, true>(
          static_cast<const A *>(job.S_mix), job.m, room.z + b * job.n * kWidth, down, room.token, nullptr, job.m, false);
      E *row = static_cast<E *>(job.y) + (b0 + b) * job.out;
      for (int64_t i = 0; i < job.m; ++i) {
        const int64_t at = i * job.p + ap * kWidth, last = (i + 1) * job.p < job.out ? (i + 1) * job.p : job.out;
        store_row<kWidth>(room.token + i * kWidth, bias ? bias + at : nullptr, clamp(last - at, kWidth), row + at);
      }
    }
  }

  static void make_v(const Job &job, int64_t tokens, const Room &room) {
    const int64_t columns = job.N * job.n;
    const Stretches down{1, job.m, job.m, 0};
    for (int64_t b = 0; b < tokens; ++b) {
      const A *S = static_cast<const A *>(job.S_unmix), *dy = room.dy + b * job.m * kWidth;
      O *v = room.v + b * job.n * kWidth;
      if constexpr (kPairs) {
        product<Mix, true>(S, columns, dy, down, room.token, nullptr, columns, false);
        for (int64_t c = 0; c < columns; ++c) pack_row<kWidth>(room.token + c * kWidth, kWidth, v + job.rows[c] * kWidth);
      } else {
        product<Mix, true>(S, columns, dy, down, v, job.rows, columns, false);
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
        if (room.z) make_z(job, tokens, ap, room);
        if (job.y) mix_y(job, b, tokens, ap, room);
        if (room.dy) pack_dy(job, b, tokens, ap, room.dy);
        if (job.dS) {
          dots<Mix>(
              room.dy, job.m, room.z, job.rows, job.N * job.n, job.n * kWidth, tokens, static_cast<A *>(part.dS));
        }
        if (room.v) make_v(job, tokens, room);
        if (job.dx) add_dx(job, part, tokens, ap, room);
        if (job.dT) add_dT(job, static_cast<A *>(part.dT), tokens, ap, room);
      }
      if (job.dx) store_dx(job, part, b, tokens, room);
    }
  }

  // The sums of all parts, in order, as the gradient of T (strides as T's own).
  static void finish_dT(const Job &job, const void *sums, int64_t parts, int64_t t, int64_t ap, void *dT) {
    const int64_t valid = clamp(job.p - ap * kWidth, kWidth);
    const int64_t part = ceil_div(job.p, kWidth) * job.N * job.q * kWidth;
    const A *from = static_cast<const A *>(sums) + (ap * job.N + t) * job.q * kWidth;
    E *to = static_cast<E *>(dT) + t * job.p * job.q + ap * kWidth * job.T_a;
    for (int64_t k = 0; k < job.q; ++k, from += kWidth, to += job.T_k) {
      for (int64_t a = 0; a < valid; ++a) {
        A total = from[a];
        for (int64_t i = 1; i < parts; ++i) total += from[i * part + a];
        narrow(total, to[a * job.T_a]);
      }
    }
  }

  static void finish_dS(const Job &job, const void *sums, int64_t parts, void *dS) {
    const int64_t columns = job.N * job.n;
    for (int64_t i = 0; i < job.m; ++i) {
      for (int64_t c = 0; c < columns; ++c) {
        const A *from = static_cast<const A *>(sums) + i * columns + c;
        A total = from[0];
        for (int64_t k = 1; k < parts; ++k) total += from[k * job.m * columns];
        narrow(
            total,
            static_cast<E *>(dS)[c / job.n * job.m * job.n + i * job.S_i + c % job.n * job.S_j]);
      }
    }
  }

  static constexpr weit::Kernels table() {
    return {kWidth, sizeof(A), packed_Z_size, packed_dx_size, block_size, pack_S, pack_T, run, finish_dT, finish_dS};
  }
};

inline const weit::Kernels &kernels_for(weit::Element element) {
  static constexpr weit::Kernels kFloats = Chain<float, MultiplyAdd<float>>::table();
  static constexpr weit::Kernels kDoubles = Chain<double, MultiplyAdd<double>>::table();
  static constexpr weit::Kernels kHalves = Chain<BFloat16, MultiplyAdd<float>>::table();
  return element == weit::kFloat ? kFloats : element == weit::kDouble ? kDoubles : kHalves;
}

}  // namespace
