// The tables of one instruction set: which kernels do a job.
#pragma once

#include "block.h"
#include "lanes.h"

namespace {

template <class E, class Op>
inline const weit::Kernels &kernels_of(const Job &job) {
  static constexpr weit::Kernels kTokens = Chain<E, Op>::table(), kPixels = Lanes<E, Op>::table();
  return Lanes<E, Op>::serves(job) ? kPixels : kTokens;
}

// Without products of 16-bit numbers: bfloat16 is widened.
inline const weit::Kernels &kernels_of(const Job &job, weit::Element element) {
  if (element == weit::kFloat) return kernels_of<float, MultiplyAdd<float>>(job);
  if (element == weit::kDouble) return kernels_of<double, MultiplyAdd<double>>(job);
  return kernels_of<BFloat16, MultiplyAdd<float>>(job);
}

}  // namespace
