// The same chain for maps, with pixels as the columns of panels: a map's row of pixels is a panel row as it lies, so
// neither x nor the result is turned. Templates and scalers are the left operands here. For y alone or dx alone and
// without a window; T is always packed by the driver. See chain.h for the formulas, tiles.h for panels.
#pragma once

#include "factors.h"
#include "scratch.h"
#include "tokens.h"

namespace {

using weit::Part;

template <class E, class Op>
struct Lanes : Factors<E, Op> {
  using Base = Factors<E, Op>;
  using typename Base::A;
  using typename Base::O;
  using Base::dx_panel, Base::kSquare, Base::kWidth, Base::z_panel, Base::z_rows;

  static constexpr int64_t kLoadAhead = 8, kStoreAhead = 2;  // rows whose memory is called for in advance

  static bool serves(const Job &job) {
    return job.maps && !job.windowed && !job.dT && !job.dS && !(job.y && job.dx);
  }

  static int64_t strips(int64_t tokens) { return ceil_div(tokens, kWidth); }
  static int64_t x_strip(const Job &job) { return job.n * job.q * kWidth; }

  // What one block of tokens, some strips of pixels, needs. `middle`: of one strip and one panel of a, Z as
  // [a][t, j] or V as [t, j][a].
  struct Room {
    O *x, *dy, *middle;
    A *dx, *sums;
    int64_t *row_at, *T_at;
    Room(Scratch &s, const Job &job, int64_t tokens) {
      const int64_t columns = job.N * job.n;
      x = s.take<O>(job.y ? strips(tokens) * x_strip(job) : 0);
      dx = s.take<A>(job.dx ? strips(tokens) * x_strip(job) : 0);
      dy = s.take<O>(job.dx ? job.m * kWidth : 0);
      sums = s.take<A>(job.y ? job.m * kWidth : 0);
      middle = s.take<O>(columns * kSquare);
      row_at = s.take<int64_t>(job.y ? kWidth : columns);
      T_at = s.take<int64_t>(job.dx ? job.N : 0);
    }
  };

  static int64_t block_size(const Job &job, int64_t tokens) {
    Scratch count{nullptr};
    Room room(count, job, tokens);
    return count.used;
  }

  // Where the tokens of a strip lie: in one image, or in several.
  struct Strip {
    const Job &job;
    int64_t tokens, runs = 0;
    struct Run {
      int64_t done, count, image, pixel;
    } run[kWidth];
    Strip(const Job &job, int64_t b, int64_t end) : job(job), tokens(clamp(end - b, kWidth)) {
      each_run(job, b, tokens, [&](int64_t done, int64_t count, int64_t image, int64_t pixel) {
        run[runs++] = {done, count, image, pixel};
      });
    }
    template <class U>
    Place<U> place_of(U *tensor, int64_t features, const Run &run) const {
      return place(job, tensor, features, job.near, run.image, run.pixel);
    }
  };

  // Some features of a tensor: `first`, `first` + `step`, …, as far as the tensor has them.
  struct Rows {
    int64_t features, first, step, count, there;
    Rows(int64_t features, int64_t first, int64_t step, int64_t count)
        : features(features), first(first), step(step), count(count),
          there(clamp(ceil_div(features - first, step), count)) {}
  };

  // A panel row each, zeros where there is none.
  static void load(const Strip &strip, const void *tensor, const Rows &rows, O *to) {
    if (strip.tokens < kWidth) memset(to, 0, rows.there * kWidth * sizeof(O));
    memset(to + rows.there * kWidth, 0, (rows.count - rows.there) * kWidth * sizeof(O));
    for (int64_t i = 0; i < strip.runs; ++i) {
      const auto &run = strip.run[i];
      const auto from = strip.place_of(static_cast<const E *>(tensor), rows.features, run);
      const int64_t step = rows.step * from.feature;
      const E *map = from.at + rows.first * from.feature;
      O *row = to + run.done;
      for (int64_t r = 0; r < rows.there; ++r, map += step, row += kWidth) {
        __builtin_prefetch(map + kLoadAhead * step);
        __builtin_prefetch(map + kLoadAhead * step + kWidth - 1);
        if (run.count == kWidth)
          pack_row<kWidth>(map, kWidth, row);
        else
          for (int64_t c = 0; c < run.count; ++c) narrow(map[c], row[c]);
      }
    }
  }

  static void store(const Strip &strip, const A *from, const void *bias, const Rows &rows, void *tensor) {
    const E *added = bias ? static_cast<const E *>(bias) + rows.first : nullptr;
    for (int64_t i = 0; i < strip.runs; ++i) {
      const auto &run = strip.run[i];
      const auto to = strip.place_of(static_cast<E *>(tensor), rows.features, run);
      E *map = to.at + rows.first * to.feature;
      for (int64_t r = 0; r < rows.there; ++r, map += rows.step * to.feature) {
        const A b = added ? A(widened(added[r * rows.step])) : A(0);
        store_line<kWidth>(from + r * kWidth + run.done, b, run.count, map);
      }
    }
  }

  // Calls for what the first run of a strip will be stored to: rows lie too far apart for the hardware to foresee.
  // Inlined by order, since compilers drop calls of a function that only prefetches as without effect.
  __attribute__((always_inline)) static inline void prefetch(const Strip &strip, const Rows &rows, void *tensor) {
    const auto to = strip.place_of(static_cast<E *>(tensor), rows.features, strip.run[0]);
    const E *map = to.at + rows.first * to.feature;
    for (int64_t r = 0; r < rows.there; ++r, map += rows.step * to.feature) {
      __builtin_prefetch(map, 1);
      __builtin_prefetch(map + kWidth - 1, 1);
    }
  }

  static void make_y(const Job &job, const Part &part, int64_t b0, int64_t b1, const O *T, const Room &room) {
    const int64_t columns = job.N * job.n, at = 0;
    const Stretches over_k{1, job.q, job.q, 0, &at}, over_c{1, columns, columns, 0, &at};
    const O *S = static_cast<const O *>(job.S_mix);
    for (int64_t b = b0, s = 0; b < b1; b += kWidth, ++s)
      load(Strip(job, b, b1), job.x, Rows(job.in, 0, 1, job.n * job.q), room.x + s * x_strip(job));
    for (int64_t ap = part.a0; ap < part.a1; ++ap) {
      const int64_t rows = clamp(job.p - ap * kWidth, kWidth);
      const O *x = room.x;
      for (int64_t b = b0; b < b1; b += kWidth, x += x_strip(job)) {
        for (int64_t c = 0; c < columns; ++c) {
          const O *left = T + ap * z_panel(job) + c / job.n * z_rows(job) * kWidth;
          const O *right = x + c % job.n * job.q * kWidth;
          product<Op, true>(left, kWidth, right, over_k, room.middle + c * kWidth, room.row_at, rows, false);
        }
        const Strip strip(job, b, b1);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t a = ap * kWidth + r, ahead = a + kStoreAhead;
          if (ahead < part.a1 * kWidth) prefetch(strip, Rows(job.out, ahead, job.p, job.m), job.y);
          product<Op, true>(S, job.m, room.middle + r * columns * kWidth, over_c, room.sums, nullptr, job.m, false);
          store(strip, room.sums, job.y_bias, Rows(job.out, a, job.p, job.m), job.y);
        }
      }
    }
  }

  static void make_dx(const Job &job, const Part &part, int64_t b0, int64_t b1, const O *T, const Room &room) {
    const int64_t columns = job.N * job.n, at = 0;
    const Stretches over_i{1, job.m, job.m, 0, &at};
    const O *S = static_cast<const O *>(job.S_unmix);
    for (int64_t ap = 0; ap * kWidth < job.p; ++ap) {
      const int64_t rows = clamp(job.p - ap * kWidth, kWidth);
      const Stretches over_a{job.N, rows, rows, job.n * kSquare, room.T_at};
      A *dx = room.dx;
      for (int64_t b = b0; b < b1; b += kWidth, dx += x_strip(job)) {
        const Strip strip(job, b, b1);
        for (int64_t r = 0; r < rows; ++r) {
          load(strip, job.dy, Rows(job.out, ap * kWidth + r, job.p, job.m), room.dy);
          product<Op, true>(S, columns, room.dy, over_i, room.middle + r * kWidth, room.row_at, columns, false);
        }
        for (int64_t kp = part.k0; kp < part.k1; ++kp) {
          const O *left = T + ap * dx_panel(job) + kp * job.N * kSquare;
          const int64_t k = kp * kWidth, count = clamp(job.q - k, kWidth);
          for (int64_t j = 0; j < job.n; ++j) {
            A *to = dx + (j * job.q + k) * kWidth;
            product<Op, true>(left, kWidth, room.middle + j * kSquare, over_a, to, nullptr, count, ap > 0);
          }
        }
      }
    }
    const int64_t k = part.k0 * kWidth, count = clamp(job.q - k, (part.k1 - part.k0) * kWidth);
    const A *dx = room.dx;
    for (int64_t b = b0; b < b1; b += kWidth, dx += x_strip(job)) {
      const Strip strip(job, b, b1);
      for (int64_t f = k; f < job.n * job.q; f += job.q)
        store(strip, dx + f * kWidth, job.dx_bias, Rows(job.in, f, 1, count), job.dx);
    }
  }

  static void run(const Job &job, const Part &part) {
    Scratch scratch{static_cast<char *>(part.scratch)};
    Room room(scratch, job, job.block);
    const O *T = static_cast<const O *>(job.y ? job.packed_Z : job.packed_dx);
    const int64_t columns = job.N * job.n;
    for (int64_t r = 0; r < (job.y ? kWidth : columns); ++r) room.row_at[r] = r * (job.y ? columns : kWidth);
    for (int64_t t = 0; job.dx && t < job.N; ++t) room.T_at[t] = t * kSquare;
    const auto make = job.y ? make_y : make_dx;
    for (int64_t b = part.b0; b < part.b1; b += job.block) make(job, part, b, b + clamp(part.b1 - b, job.block), T, room);
  }
};

}  // namespace
