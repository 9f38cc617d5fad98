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
  using typename Base::W;
  using Base::dx_panel, Base::even, Base::kPairs, Base::kSquare, Base::kWidth, Base::word, Base::words;
  using Base::z_panel, Base::z_rows;

  static constexpr int64_t kLoadAhead = 8, kStoreAhead = 3;  // rows whose memory is called for in advance

  static bool serves(const Job &job) {
    return job.maps && !job.windowed && !job.dT && !job.dS && !(job.y && job.dx);
  }

  static int64_t strips(int64_t tokens) { return ceil_div(tokens, kWidth); }
  static int64_t x_strip(const Job &job) { return job.n * even(job.q) * kWidth; }
  static int64_t dx_strip(const Job &job) { return job.n * job.q * kWidth; }
  static int64_t z_columns(const Job &job) { return job.N * even(job.n); }

  // What one block of tokens, some strips of pixels, needs. `middle`: of one strip and one panel of a, Z as
  // [a][t, j] or V as [t, j][a]. With pairs, features as they are read, and sums before they are rounded.
  struct Room {
    O *x, *dy, *middle, *plain;
    A *dx, *sums;
    int64_t *row_at, *T_at;
    Room(Scratch &s, const Job &job, int64_t tokens) {
      const int64_t columns = job.N * job.n, rounded = kPairs ? 2 * (job.y ? kWidth : columns) : 0;
      x = s.take<O>(job.y ? strips(tokens) * x_strip(job) : 0);
      dx = s.take<A>(job.dx ? strips(tokens) * dx_strip(job) : 0);
      dy = s.take<O>(job.dx ? even(job.m) * kWidth : 0);
      plain = s.take<O>(kPairs ? (job.y ? job.q : job.m) * kWidth : 0);
      sums = s.take<A>((job.y && job.m > rounded ? job.m : rounded) * kWidth);
      middle = s.take<O>((job.y ? z_columns(job) : columns) * kSquare);
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

  // All lines of memory that a panel row of a map lies in; inlined by order, since compilers drop calls of a function
  // that only prefetches as without effect.
  template <int WRITE, int WIDTH>
  __attribute__((always_inline)) static inline void prefetch_row(const E *map) {
    constexpr int kLine = 64 / sizeof(E);
    for (int c = 0; c < WIDTH; c += kLine) __builtin_prefetch(map + c, WRITE);
    __builtin_prefetch(map + WIDTH - 1, WRITE);
  }

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
        prefetch_row<0, kWidth>(map + kLoadAhead * step);
        if (run.count == kWidth)
          pack_row<kWidth>(map, kWidth, row);
        else
          for (int64_t c = 0; c < run.count; ++c) narrow(map[c], row[c]);
      }
    }
  }

  // The same, with pairs of rows side by side where products want them so.
  static void load_pairs(const Strip &strip, const void *tensor, const Rows &rows, const Room &room, O *to) {
    if constexpr (kPairs) {
      load(strip, tensor, rows, room.plain);
      pair_rows<kWidth>(room.plain, rows.count, to);
    } else {
      load(strip, tensor, rows, to);
    }
  }

  // Rows of a product that are rows of y's maps as they stand, `step` apart, with a number of the bias each.
  struct MapRows {
    E *map;
    int64_t step;
    const E *bias;  // null: none
    int64_t bias_step, ahead;  // ahead: how far behind a row lies what is stored soon; 0: nothing is

    template <int ROWS, int VECTORS>
    inline void put(const typename Op::V (&sum)[ROWS][VECTORS]) const {
      constexpr int kLanes = Op::kLanes;
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
        alignas(64) A line[VECTORS * kLanes];
        const A b = bias ? A(widened(bias[r * bias_step])) : A(0);
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) *reinterpret_cast<typename Op::V *>(line + v * kLanes) = sum[r][v] + b;
        narrow_row<VECTORS * kLanes>(line, map + r * step);
        // Rows lie too far apart for the hardware to foresee them.
        if (ahead) prefetch_row<1, VECTORS * kLanes>(map + r * step + ahead);
      }
    }
    inline void skip(int64_t count) {
      map += count * step;
      if (bias) bias += count * bias_step;
    }
  };

  // Rows of a product go to `to`, `step` apart, panel row `index` of what is there. With pairs they are rounded, and
  // two products, the first of an even index, go there together; a `last` one may stand alone.
  template <int VECTORS>
  static void between(
      const O *left, int64_t left_row, const O *right, const Stretches &s, int64_t rows, const Room &room, O *to,
      int64_t step, int64_t index, bool last) {
    if constexpr (kPairs) {
      const bool second = index % 2;
      A *sums = room.sums + second * kWidth;
      product<Op, true, VECTORS>(word(left), left_row, word(right), s, sums, room.row_at, rows, false);
      if (!second && !last) return;
      to += (index - second) * kWidth;
      for (int64_t r = 0; r < rows; ++r) Op::narrow_pair(room.sums + 2 * r * kWidth, second, to + r * step);
    } else {
      product<Op, true, VECTORS>(left, left_row, right, s, to + index * kWidth, room.row_at, rows, false);
    }
  }

  static void store(const Strip &strip, const A *from, const void *bias, const Rows &rows, void *tensor) {
    const E *added = bias ? static_cast<const E *>(bias) + rows.first : nullptr;
    const auto to = strip.place_of(static_cast<E *>(tensor), rows.features, strip.run[0]);
    const int64_t step = rows.step * to.feature;
    E *map = to.at + rows.first * to.feature;
    for (int64_t r = 0; r < rows.there; ++r, from += kWidth, map += step) {
      const A b = added ? A(widened(added[r * rows.step])) : A(0);
      if (strip.run[0].count == kWidth) {
        store_line<kWidth>(from, b, kWidth, map);
        continue;
      }
      E line[kWidth];
      store_line<kWidth>(from, b, kWidth, line);
      for (int64_t i = 0; i < strip.runs; ++i) {
        const auto &run = strip.run[i];
        E *at = strip.place_of(static_cast<E *>(tensor), rows.features, run).at;
        copy_few<kWidth / 2>(line + run.done, run.count, at + rows.first * to.feature + r * step);
      }
    }
  }

  // One strip and one panel of a. Of a strip that is no longer than one vector the rest is not computed.
  template <int VECTORS>
  static void strip_y(const Job &job, const Strip &strip, int64_t ap, const O *x, const Room &room) {
    const int64_t columns = z_columns(job), group = even(job.q) * kWidth, at = 0;
    const Stretches over_k{1, words(job.q), words(job.q), 0, &at}, over_c{1, words(columns), words(columns), 0, &at};
    const int64_t rows = clamp(job.p - ap * kWidth, kWidth);
    const O *left = static_cast<const O *>(job.packed_Z) + ap * z_panel(job);
    for (int64_t t = 0; t < job.N; ++t, left += z_rows(job) * kWidth) {
      O *z = room.middle + t * even(job.n) * kWidth;
      for (int64_t j = 0; j < job.n; ++j)
        between<VECTORS>(left, kWidth, x + j * group, over_k, rows, room, z, columns * kWidth, j, j + 1 == job.n);
    }
    const W *S = word(static_cast<const O *>(job.S_mix));
    const bool whole = strip.runs == 1 && strip.tokens == VECTORS * Op::kLanes;
    const auto to = strip.place_of(static_cast<E *>(job.y), job.out, strip.run[0]);
    const E *bias = static_cast<const E *>(job.y_bias);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t a = ap * kWidth + r;
      const W *z = word(room.middle + r * columns * kWidth);
      const Rows features(job.out, a, job.p, job.m);
      if (whole) {
        const int64_t step = job.p * to.feature, ahead = r + kStoreAhead < rows ? kStoreAhead * to.feature : 0;
        const MapRows maps{to.at + a * to.feature, step, bias ? bias + a : nullptr, job.p, ahead};
        product<Op, true, VECTORS>(S, job.m, z, over_c, maps, features.there);
      } else {
        product<Op, true, VECTORS>(S, job.m, z, over_c, room.sums, nullptr, features.there, false);
        store(strip, room.sums, bias, features, job.y);
      }
    }
  }

  static void make_y(const Job &job, const Part &part, int64_t b0, int64_t b1, const Room &room) {
    const int64_t group = even(job.q) * kWidth;
    O *x = room.x;
    for (int64_t b = b0; b < b1; b += kWidth) {
      const Strip strip(job, b, b1);
      for (int64_t j = 0; j < job.n; ++j, x += group)
        load_pairs(strip, job.x, Rows(job.in, j * job.q, 1, job.q), room, x);
    }
    for (int64_t ap = part.a0; ap < part.a1; ++ap) {
      x = room.x;
      for (int64_t b = b0; b < b1; b += kWidth, x += x_strip(job)) {
        const Strip strip(job, b, b1);
        const auto make = strip.tokens > Op::kLanes ? strip_y<2> : strip_y<1>;
        make(job, strip, ap, x, room);
      }
    }
  }

  // What one panel of a adds to one strip of dx.
  template <int VECTORS>
  static void strip_dx(const Job &job, const Part &part, const Strip &strip, int64_t ap, A *dx, const Room &room) {
    const int64_t columns = job.N * job.n, at = 0;
    const Stretches over_i{1, words(job.m), words(job.m), 0, &at};
    const O *S = static_cast<const O *>(job.S_unmix), *T = static_cast<const O *>(job.packed_dx) + ap * dx_panel(job);
    const int64_t rows = clamp(job.p - ap * kWidth, kWidth);
    const Stretches over_a{job.N, words(rows), words(rows), words(job.n * kSquare), room.T_at};
    for (int64_t r = 0; r < rows; ++r) {
      load_pairs(strip, job.dy, Rows(job.out, ap * kWidth + r, job.p, job.m), room, room.dy);
      between<VECTORS>(S, columns, room.dy, over_i, columns, room, room.middle, kSquare, r, r + 1 == rows);
    }
    for (int64_t kp = part.k0; kp < part.k1; ++kp) {
      const W *left = word(T + kp * job.N * kSquare);
      const int64_t k = kp * kWidth, count = clamp(job.q - k, kWidth);
      for (int64_t j = 0; j < job.n; ++j) {
        const W *v = word(room.middle + j * kSquare);
        A *to = dx + (j * job.q + k) * kWidth;
        product<Op, true, VECTORS>(left, kWidth, v, over_a, to, nullptr, count, ap > 0);
      }
    }
  }

  static void make_dx(const Job &job, const Part &part, int64_t b0, int64_t b1, const Room &room) {
    for (int64_t ap = 0; ap * kWidth < job.p; ++ap) {
      A *dx = room.dx;
      for (int64_t b = b0; b < b1; b += kWidth, dx += dx_strip(job)) {
        const Strip strip(job, b, b1);
        const auto make = strip.tokens > Op::kLanes ? strip_dx<2> : strip_dx<1>;
        make(job, part, strip, ap, dx, room);
      }
    }
    const int64_t k = part.k0 * kWidth, count = clamp(job.q - k, (part.k1 - part.k0) * kWidth);
    const A *dx = room.dx;
    for (int64_t b = b0; b < b1; b += kWidth, dx += dx_strip(job)) {
      const Strip strip(job, b, b1);
      for (int64_t f = k; f < job.n * job.q; f += job.q)
        store(strip, dx + f * kWidth, job.dx_bias, Rows(job.in, f, 1, count), job.dx);
    }
  }

  static void run(const Job &job, const Part &part) {
    Scratch scratch{static_cast<char *>(part.scratch)};
    Room room(scratch, job, job.block);
    const int64_t rows = job.y ? kWidth : job.N * job.n, step = kPairs ? 2 : job.y ? z_columns(job) : kWidth;
    for (int64_t r = 0; r < rows; ++r) room.row_at[r] = r * step;
    for (int64_t t = 0; job.dx && t < job.N; ++t) room.T_at[t] = words(t * kSquare);
    const auto make = job.y ? make_y : make_dx;
    const int64_t block = strips(job.block) * kWidth;  // half a strip took the room of a whole one
    for (int64_t b = part.b0; b < part.b1; b += block) make(job, part, b, b + clamp(part.b1 - b, block), room);
  }

  static constexpr weit::Kernels table() {
    const auto unit = [](const Job &) -> int64_t { return Op::kLanes; };
    return {kWidth, sizeof(A), unit, Base::packed_Z_size, Base::packed_dx_size, block_size, Base::pack_S, Base::pack_T,
            run, nullptr, nullptr};
  }
};

}  // namespace
