// The chain of products over blocks of tokens, on one core: everything between reading x (or dy) and writing the
// result stays in this core's cache. See chain.h for the formulas, tiles.h for panels.
#pragma once

#include "factors.h"
#include "scratch.h"
#include "sums.h"
#include "tokens.h"

namespace {

using weit::Lines;
using weit::lines_of;
using weit::Part;

template <class E, class Op>
struct Chain : Factors<E, Op> {
  using Base = Factors<E, Op>;
  using typename Base::A;
  using typename Base::O;
  using typename Base::W;
  using Base::dx_panel, Base::even, Base::kPack, Base::kPairs, Base::kSquare, Base::kWidth, Base::pack_for_dx;
  using Base::pack_for_Z, Base::word, Base::words, Base::z_panel, Base::z_rows;
  static constexpr int64_t kChain = 256;  // terms that a sum over tokens takes one after the other

  // What one block of tokens needs besides T.
  struct Room {
    O *x, *x_pairs, *v, *v_pairs, *z_pairs, *dy, *dy_pairs, *z, *local;
    A *dx, *sums;
    int64_t *x_at, *v_at, *mix_at, *line_at;  // where stretches of products begin
    Room(Scratch &s, const Job &job, int64_t tokens) {
      const bool z_too = job.y || job.dS, v_too = job.dx || job.dT;
      const int64_t k_panels = ceil_div(job.q, kWidth), taps = matrices(job) / job.N;
      const int64_t x_rows = weit::x_tokens(job, tokens) * job.n, dy_tokens = weit::dy_tokens(job, tokens);
      const int64_t z_rows = dy_tokens * job.n;
      x = s.take<O>(z_too || job.dT ? k_panels * x_rows * kWidth : 0);
      x_pairs = s.take<O>(kPairs && job.dT ? k_panels * even(x_rows) * kWidth : 0);
      v = s.take<O>(v_too ? job.N * z_rows * kWidth : 0);
      v_pairs = s.take<O>(kPairs && job.dT ? even(z_rows) * kWidth : 0);
      z = s.take<O>(job.dS || (z_too && !kPairs) ? job.N * z_rows * kWidth : 0);
      z_pairs = s.take<O>(kPairs && job.y ? job.N * tokens * even(job.n) * kWidth : 0);
      dy = s.take<O>(v_too || job.dS ? dy_tokens * job.m * kWidth : 0);
      dy_pairs = s.take<O>(kPairs && v_too ? even(job.m) * kWidth : 0);
      dx = s.take<A>(job.dx ? k_panels * tokens * job.n * kWidth : 0);
      int64_t most = kPairs && z_too ? z_rows : 0;  // rows of sums on their way to where they are wanted
      const int64_t mixed = job.y ? mixed_together(job) * job.m : 0;
      if (mixed > most) most = mixed;
      if (kPairs && v_too && job.N * job.n > most) most = job.N * job.n;
      sums = s.take<A>(most * kWidth);
      const bool pack_Z = z_too && !job.packed_Z, pack_dx = job.dx && !job.packed_dx;
      const int64_t for_Z = pack_Z ? z_panel(job) : 0, for_dx = pack_dx ? matrices(job) * kSquare : 0;
      local = s.take<O>(for_Z > for_dx ? for_Z : for_dx);  // one after the other
      x_at = s.take<int64_t>(taps * k_panels);
      v_at = s.take<int64_t>(matrices(job));
      mix_at = s.take<int64_t>(job.N);
      line_at = s.take<int64_t>(lines_of(job, tokens).count);
    }
  };

  static int64_t unit(const Job &job) { return job.windowed ? job.near.width : 1; }

  static int64_t block_size(const Job &job, int64_t tokens) {
    Scratch count{nullptr};
    Room room(count, job, tokens);
    return count.used;
  }

  static int64_t x_panel(const Job &job) { return weit::x_tokens(job, job.block) * job.n * kWidth; }
  static int64_t x_pairs_panel(const Job &job) { return even(weit::x_tokens(job, job.block) * job.n) * kWidth; }
  static int64_t z_panel_of_tokens(const Job &job) { return weit::dy_tokens(job, job.block) * job.n * kWidth; }

  // Where a tap reads, counted from where the first one in order of position does.
  static int64_t tap_offset(const Job &job, int64_t tap, bool backwards) {
    const weit::Window &w = job.window;
    int64_t line = tap / w.taps.width, column = tap % w.taps.width;
    if (backwards) line = w.taps.height - 1 - line, column = w.taps.width - 1 - column;
    const int64_t pitch = lines_of(job, job.block).pitch;
    return (line * w.step.height * pitch + column * w.step.width) * job.n * kWidth;
  }

  static void find_stretches(const Job &job, const Room &room) {
    const int64_t k_panels = ceil_div(job.q, kWidth), taps = matrices(job) / job.N;
    const Lines lines = lines_of(job, job.block);
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t kp = 0; kp < k_panels; ++kp)
        room.x_at[tap * k_panels + kp] = words(tap_offset(job, tap, job.window.backwards) + kp * x_panel(job));
      for (int64_t t = 0; t < job.N; ++t)
        room.v_at[t * taps + tap] = words(t * z_panel_of_tokens(job) + tap_offset(job, tap, !job.window.backwards));
    }
    for (int64_t t = 0; t < job.N; ++t) room.mix_at[t] = t * words(job.n) * job.m;
    for (int64_t l = 0; l < lines.count; ++l) room.line_at[l] = words(l * lines.pitch * job.n * kWidth);
  }

  // Tokens whose y is made before it is stored: of maps a square of them and their features.
  static int64_t mixed_together(const Job &job) { return job.maps ? kWidth : 1; }

  static Split x_split(const Job &job) { return {job.n, job.q, job.in}; }
  static Split dy_split(const Job &job) { return {job.m, job.p, job.out}; }

  static void load_x(const Job &job, int64_t b0, int64_t tokens, const Room &room) {
    const int64_t k_panels = ceil_div(job.q, kWidth), panel = x_panel(job);
    const auto load = job.windowed ? load_around<kWidth, E, O> : load_tokens<kWidth, E, O>;
    load(job, job.x, x_split(job), b0, tokens, 0, k_panels, room.x, panel);
    if constexpr (kPairs) {
      if (!job.dT) return;
      const int64_t rows = weit::x_tokens(job, tokens) * job.n;
      for (int64_t kp = 0; kp < k_panels; ++kp)
        pair_rows<kWidth>(room.x + kp * panel, rows, room.x_pairs + kp * x_pairs_panel(job));
    }
  }

  static void load_dy(const Job &job, int64_t b0, int64_t tokens, int64_t ap, const Room &room) {
    const auto load = job.windowed && job.dx ? load_around<kWidth, E, O> : load_tokens<kWidth, E, O>;
    load(job, job.dy, dy_split(job), b0, tokens, ap, ap + 1, room.dy, 0);
  }

  static void make_z(const Job &job, int64_t tokens, int64_t ap, const Room &room) {
    const O *packed = job.packed_Z ? static_cast<const O *>(job.packed_Z) + ap * z_panel(job) : room.local;
    if (!job.packed_Z) {
      for (int64_t u = 0; u < matrices(job); ++u) pack_for_Z(job, u, ap, room.local);
    }
    const int64_t k_panels = ceil_div(job.q, kWidth), taps = matrices(job) / job.N, panel = z_panel_of_tokens(job);
    const int64_t last = words(z_rows(job) - (k_panels - 1) * kWidth);
    const Stretches along{taps * k_panels, words(kWidth), last, words(kSquare), room.x_at};
    const Lines lines = lines_of(job, tokens);
    for (int64_t t = 0; t < job.N; ++t) {
      const W *T = word(packed + t * taps * z_rows(job) * kWidth);
      A *z = nullptr;
      if constexpr (kPairs)
        z = room.sums;
      else
        z = room.z + t * panel;
      for (int64_t l = 0; l < lines.count; ++l, z += lines.length * job.n * kWidth)
        product<Op, false>(word(room.x) + room.line_at[l], 0, T, along, z, nullptr, lines.length * job.n, false);
      if constexpr (kPairs) {
        for (int64_t r = 0; room.z && r < tokens * job.n; ++r)
          narrow_row<kWidth>(room.sums + r * kWidth, room.z + t * panel + r * kWidth);
        for (int64_t b = 0; room.z_pairs && b < tokens; ++b) {
          O *to = room.z_pairs + (t * job.block + b) * even(job.n) * kWidth;
          for (int64_t j = 0; j < job.n; j += 2, to += 2 * kWidth)
            Op::narrow_pair(room.sums + (b * job.n + j) * kWidth, j + 1 < job.n, to);
        }
      }
    }
  }

  static void mix_y(const Job &job, int64_t b0, int64_t tokens, int64_t ap, const Room &room) {
    const int64_t token = even(job.n) * kWidth, most = mixed_together(job);
    const int64_t panel = kPairs ? job.block * token : z_panel_of_tokens(job);
    const Stretches down{job.N, words(job.n), words(job.n), words(panel), room.mix_at};
    const O *S = static_cast<const O *>(job.S_mix), *z = kPairs ? room.z_pairs : room.z;
    for (int64_t b = 0; b < tokens; b += most) {
      const int64_t count = clamp(tokens - b, most);
      for (int64_t c = 0; c < count; ++c) {
        A *sums = room.sums + c * job.m * kWidth;
        product<Op, true>(word(S), job.m, word(z + (b + c) * token), down, sums, nullptr, job.m, false);
      }
      store_tokens<kWidth, E>(job, room.sums, 0, dy_split(job), b0 + b, count, ap, ap + 1, job.y_bias, job.y);
    }
  }

  static void make_v(const Job &job, int64_t tokens, const Room &room) {
    const int64_t columns = job.N * job.n, at = 0;
    const Stretches down{1, words(job.m), words(job.m), 0, &at};
    const O *S = static_cast<const O *>(job.S_unmix);
    for (int64_t b = 0; b < weit::dy_tokens(job, tokens); ++b) {
      const O *dy = room.dy + b * job.m * kWidth;
      O *v = room.v + b * job.n * kWidth;
      if constexpr (kPairs) {
        pair_rows<kWidth>(dy, job.m, room.dy_pairs);
        product<Op, true>(word(S), columns, word(room.dy_pairs), down, room.sums, nullptr, columns, false);
        for (int64_t c = 0; c < columns; ++c) narrow_row<kWidth>(room.sums + c * kWidth, v + job.rows[c] * kWidth);
      } else {
        product<Op, true>(S, columns, dy, down, v, job.rows, columns, false);
      }
    }
  }

  static void add_dx(const Job &job, const Part &part, int64_t tokens, int64_t ap, const Room &room) {
    const int64_t inner = words(clamp(job.p - ap * kWidth, kWidth)), panel = job.block * job.n * kWidth;
    const Stretches along{matrices(job), inner, inner, words(kSquare), room.v_at};
    const Lines lines = lines_of(job, tokens);
    for (int64_t kp = part.k0; kp < part.k1; ++kp) {
      const O *packed = room.local;
      if (job.packed_dx) {
        packed = static_cast<const O *>(job.packed_dx) + ap * dx_panel(job) + kp * matrices(job) * kSquare;
      } else {
        for (int64_t u = 0; u < matrices(job); ++u) pack_for_dx(job, u, ap, kp, room.local + u * kSquare);
      }
      A *dx = room.dx + kp * panel;
      for (int64_t l = 0; l < lines.count; ++l, dx += lines.length * job.n * kWidth) {
        const W *v = word(room.v) + room.line_at[l];
        product<Op, false>(v, 0, word(packed), along, dx, nullptr, lines.length * job.n, ap > 0);
      }
    }
  }

  // Accumulators of dT: [a panel][matrix][k][a in panel].
  static void add_dT(const Job &job, A *total, int64_t tokens, int64_t ap, const Room &room) {
    const int64_t taps = matrices(job) / job.N, most = job.block * job.n;
    const Lines lines = lines_of(job, tokens);
    const int64_t row = lines.length * job.n, together = row < kChain ? kChain / row : 1;
    A *to = total + ap * matrices(job) * job.q * kWidth;
    for (int64_t t = 0; t < job.N; ++t) {
      const O *v = room.v + t * most * kWidth, *x = room.x;
      int64_t x_stride = x_panel(job);
      if constexpr (kPairs) {
        pair_rows<kWidth>(v, tokens * job.n, room.v_pairs);
        v = room.v_pairs, x = room.x_pairs, x_stride = x_pairs_panel(job);
      }
      for (int64_t tap = 0; tap < taps; ++tap) {
        const O *left = x + tap_offset(job, tap, job.window.backwards);
        for (int64_t k = 0; k < job.q; k += kWidth, left += x_stride) {
          const int64_t count = clamp(job.q - k, kWidth);
          for (int64_t l = 0; l < lines.count; l += together) {
            for (int64_t r = 0; r < row; r += kChain) {
              const int64_t length = words(clamp(row - r, kChain));
              const Stretches down{
                  clamp(lines.count - l, together), length, length, words(row * kWidth), room.line_at + l};
              const O *right = v + (l * row + r) * kWidth;
              product<Op, true>(word(left + r * kWidth), kWidth, word(right), down, to, nullptr, count, true);
            }
          }
          to += count * kWidth;
        }
      }
    }
  }

  static void run(const Job &job, const Part &part) {
    Scratch scratch{static_cast<char *>(part.scratch)};
    Room room(scratch, job, job.block);
    find_stretches(job, room);
    const int64_t image = weit::pixels(job.near);
    for (int64_t b = part.b0, tokens; b < part.b1; b += tokens) {
      tokens = clamp(part.b1 - b, job.block);
      if (job.windowed) tokens = clamp(image - b % image, tokens);
      if (room.x) load_x(job, b, tokens, room);
      for (int64_t ap = part.a0; ap < part.a1; ++ap) {
        if (job.y || job.dS) make_z(job, tokens, ap, room);
        if (job.y) mix_y(job, b, tokens, ap, room);
        if (room.dy) load_dy(job, b, tokens, ap, room);
        if (job.dS) {
          dots<Op>(
              word(room.dy), job.m, word(room.z), job.rows, job.N * job.n, words(job.n * kWidth), tokens,
              static_cast<A *>(part.dS));
        }
        if (room.v) make_v(job, tokens, room);
        if (job.dx) add_dx(job, part, tokens, ap, room);
        if (job.dT) add_dT(job, static_cast<A *>(part.dT), tokens, ap, room);
      }
      if (job.dx) {
        store_tokens<kWidth, E>(
            job, room.dx + part.k0 * job.block * job.n * kWidth, job.block * job.n * kWidth, x_split(job), b, tokens,
            part.k0, part.k1, job.dx_bias, job.dx);
      }
    }
  }

  static constexpr weit::Kernels table() {
    return {kWidth, sizeof(A), unit, Base::packed_Z_size, Base::packed_dx_size, block_size, Base::pack_S, Base::pack_T,
            run, finish_dT<E, A, kWidth>, finish_dS<E, A>};
  }
};

}  // namespace
