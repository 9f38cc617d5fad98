// The last step of a gradient of T or S: the sums of all parts, added in order, in the caller's element type.
#pragma once

#include "chain.h"
#include "pack.h"

namespace {

// One matrix's rows of one panel, with the strides of T; the sums lie as [part][a panel][matrix][k][a in panel].
template <class E, class A, int WIDTH>
void finish_dT(const weit::Job &job, const void *sums, int64_t parts, int64_t t, int64_t ap, void *dT) {
  const int64_t valid = clamp(job.p - ap * WIDTH, WIDTH), count = weit::matrices(job);
  const int64_t part = weit::ceil_div(job.p, WIDTH) * count * job.q * WIDTH;
  const A *from = static_cast<const A *>(sums) + (ap * count + t) * job.q * WIDTH;
  E *to = static_cast<E *>(dT) + t * job.p * job.q + ap * WIDTH * job.T_a;
  for (int64_t k = 0; k < job.q; ++k, from += WIDTH, to += job.T_k) {
    for (int64_t a = 0; a < valid; ++a) {
      A total = from[a];
      for (int64_t i = 1; i < parts; ++i) total += from[i * part + a];
      narrow(total, to[a * job.T_a]);
    }
  }
}

// All of S; the sums lie as [part][i][t][j].
template <class E, class A>
void finish_dS(const weit::Job &job, const void *sums, int64_t parts, void *dS) {
  const int64_t columns = job.N * job.n;
  for (int64_t i = 0; i < job.m; ++i) {
    for (int64_t c = 0; c < columns; ++c) {
      const A *from = static_cast<const A *>(sums) + i * columns + c;
      A total = from[0];
      for (int64_t k = 1; k < parts; ++k) total += from[k * job.m * columns];
      narrow(total, static_cast<E *>(dS)[c / job.n * job.m * job.n + i * job.S_i + c % job.n * job.S_j]);
    }
  }
}

}  // namespace
