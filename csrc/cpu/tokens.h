// Tokens between the caller's tensors and panels. A panel row is one group's share of a token's features: rows are
// (token, group), and feature f of the tensor is column f % size of group f / size.
#pragma once

#include "chain.h"
#include "pack.h"

namespace {

using weit::Job;

struct Split {
  int64_t groups, size, features;

  // Columns that panel `panel` of a group has, counted from `first`, its first feature.
  int64_t valid(int64_t group, int64_t first, int64_t width) const {
    const int64_t end = (group + 1) * size < features ? (group + 1) * size : features;
    return clamp(end - first, width);
  }
};

// Feature f of token b, counted from a first one, is at[b * token + f * feature].
template <class E>
struct Place {
  E *at;
  int64_t token, feature;
};

template <class E>
inline Place<E> place(const Job &job, E *tensor, int64_t features, weit::Size size, int64_t image, int64_t pixel) {
  const int64_t pixels = weit::pixels(size), before = image * pixels * features;
  if (job.maps) return {tensor + before + pixel, 1, pixels};
  return {tensor + before + pixel * features, features, 1};
}

// Panels [p0, p1) of tokens that lie one after the other, to panels `stride` apart. Of maps, where neighbours are
// pixels, squares are transposed.
template <int WIDTH, class E, class O>
void load_run(
    const Job &job, Place<const E> from, int64_t tokens, const Split &split, int64_t p0, int64_t p1, O *to,
    int64_t stride) {
  const int64_t row = split.groups * WIDTH;
  if (!job.maps) {
    for (int64_t b = 0; b < tokens; ++b, from.at += from.token) {
      for (int64_t g = 0; g < split.groups; ++g, to += WIDTH) {
        for (int64_t p = p0; p < p1; ++p) {
          const int64_t first = g * split.size + p * WIDTH;
          pack_row<WIDTH>(from.at + first, split.valid(g, first, WIDTH), to + (p - p0) * stride);
        }
      }
    }
    return;
  }
  alignas(64) O square[WIDTH * WIDTH];
  for (int64_t b = 0; b < tokens; b += WIDTH, to += WIDTH * row) {
    const int64_t rows = clamp(tokens - b, WIDTH);
    for (int64_t g = 0; g < split.groups; ++g) {
      for (int64_t p = p0; p < p1; ++p) {
        const int64_t first = g * split.size + p * WIDTH, valid = split.valid(g, first, WIDTH);
        const E *map = from.at + b + first * from.feature;
        for (int64_t c = 0; c < valid; ++c, map += from.feature) {
          __builtin_prefetch(map + WIDTH);  // for the next square
          pack_row<WIDTH>(map, rows, square + c * WIDTH);
        }
        memset(square + valid * WIDTH, 0, (WIDTH - valid) * WIDTH * sizeof(O));
        transpose(square, WIDTH, WIDTH, rows, to + (p - p0) * stride + g * WIDTH, row);
      }
    }
  }
}

// The other way, with a bias where there is one.
template <int WIDTH, class E, class A>
void store_run(
    const Job &job, const A *from, int64_t stride, int64_t tokens, const Split &split, int64_t p0, int64_t p1,
    const E *bias, Place<E> to) {
  const int64_t row = split.groups * WIDTH;
  if (!job.maps) {
    for (int64_t b = 0; b < tokens; ++b, to.at += to.token) {
      for (int64_t g = 0; g < split.groups; ++g, from += WIDTH) {
        for (int64_t p = p0; p < p1; ++p) {
          const int64_t first = g * split.size + p * WIDTH;
          store_row<WIDTH>(
              from + (p - p0) * stride, bias ? bias + first : nullptr, split.valid(g, first, WIDTH), to.at + first);
        }
      }
    }
    return;
  }
  alignas(64) A square[WIDTH * WIDTH];
  for (int64_t g = 0; g < split.groups; ++g) {
    for (int64_t p = p0; p < p1; ++p) {
      const int64_t first = g * split.size + p * WIDTH, valid = split.valid(g, first, WIDTH);
      const A *panel = from + (p - p0) * stride + g * WIDTH;
      for (int64_t b = 0; b < tokens; b += WIDTH, panel += WIDTH * row) {
        const int64_t rows = clamp(tokens - b, WIDTH);
        transpose(panel, row, rows, valid, square, WIDTH);
        E *map = to.at + b + first * to.feature;
        for (int64_t c = 0; c < valid; ++c, map += to.feature)
          store_line<WIDTH>(square + c * WIDTH, bias ? A(widened(bias[first + c])) : A(0), rows, map);
      }
    }
  }
}

// f(done, count, image, pixel) for each run of tokens from b on that lie in one image; without maps they all do.
template <class F>
inline void each_run(const Job &job, int64_t b, int64_t tokens, const F &f) {
  if (!job.maps) return f(0, tokens, 0, b);
  const int64_t pixels = weit::pixels(job.near);
  for (int64_t done = 0, count; done < tokens; done += count) {
    const int64_t pixel = (b + done) % pixels;
    count = clamp(tokens - done, pixels - pixel);
    f(done, count, (b + done) / pixels, pixel);
  }
}

template <int WIDTH, class E, class O>
void load_tokens(
    const Job &job, const void *tensor, const Split &split, int64_t b, int64_t tokens, int64_t p0, int64_t p1, O *to,
    int64_t stride) {
  each_run(job, b, tokens, [&](int64_t done, int64_t count, int64_t image, int64_t pixel) {
    const auto from = place(job, static_cast<const E *>(tensor), split.features, job.near, image, pixel);
    load_run<WIDTH>(job, from, count, split, p0, p1, to + done * split.groups * WIDTH, stride);
  });
}

template <int WIDTH, class E, class A>
void store_tokens(
    const Job &job, const A *from, int64_t stride, const Split &split, int64_t b, int64_t tokens, int64_t p0,
    int64_t p1, const void *bias, void *tensor) {
  each_run(job, b, tokens, [&](int64_t done, int64_t count, int64_t image, int64_t pixel) {
    const auto to = place(job, static_cast<E *>(tensor), split.features, job.near, image, pixel);
    store_run<WIDTH>(
        job, from + done * split.groups * WIDTH, stride, count, split, p0, p1, static_cast<const E *>(bias), to);
  });
}

// What the window sees from a block of whole lines, zeros where it sees padding.
template <int WIDTH, class E, class O>
void load_around(
    const Job &job, const void *tensor, const Split &split, int64_t b, int64_t tokens, int64_t p0, int64_t p1, O *to,
    int64_t stride) {
  const int64_t pitch = weit::lines_of(job, tokens).pitch, position = split.groups * WIDTH;
  const int64_t image = b / weit::pixels(job.near), left = job.window.before.width;
  const int64_t top = b % weit::pixels(job.near) / job.near.width - job.window.before.height;
  const int64_t begin = clamp(left, pitch), end = clamp(left + job.far.width, pitch);
  const int64_t lines = weit::around(job, tokens) / pitch;
  for (int64_t l = 0; l < lines; ++l, to += pitch * position) {
    const bool inside = top + l >= 0 && top + l < job.far.height && begin < end;
    const int64_t zeros = inside ? begin : pitch;
    for (int64_t p = p0; p < p1; ++p) {
      O *line = to + (p - p0) * stride;
      memset(line, 0, zeros * position * sizeof(O));
      if (inside) memset(line + end * position, 0, (pitch - end) * position * sizeof(O));
    }
    if (!inside) continue;
    const int64_t pixel = (top + l) * job.far.width + begin - left;
    const auto from = place(job, static_cast<const E *>(tensor), split.features, job.far, image, pixel);
    load_run<WIDTH>(job, from, end - begin, split, p0, p1, to + begin * position, stride);
  }
}

}  // namespace
