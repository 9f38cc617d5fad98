// The extension `weit_kernels._C`: operators of the library `weit_cpp` on plain CPU tensors, block layout, no autograd.
// `weit_kernels/ops.py` calls them below its own operators, so arguments were checked; what is checked again is what
// memory safety needs. The dispatcher releases the interpreter's lock.
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>

#include <tuple>

#include "cpu/driver.h"

namespace {

using at::Tensor;
using weit::Job;

weit::Element element_of(const Tensor &x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return weit::kFloat;
    case at::kDouble:
      return weit::kDouble;
    case at::kBFloat16:
      return weit::kBFloat16;
    default:
      TORCH_CHECK_TYPE(false, "x must be float32, float64 or bfloat16, got ", x.scalar_type());
  }
}

void check_rows(const char *name, const Tensor &t, int64_t count, int64_t size) {
  TORCH_CHECK_VALUE(
      t.dim() == 2 && t.size(1) >= 1 && t.size(1) <= count * size, name, " must have shape (M, 1 to ", count * size,
      "), got ", t.sizes());
}

void check_alike(const char *name, const Tensor &t, const Tensor &x) {
  TORCH_CHECK_VALUE(t.device().is_cpu(), name, " must be on the CPU, is on ", t.device());
  TORCH_CHECK_TYPE(t.scalar_type() == x.scalar_type(), name, " has dtype ", t.scalar_type(), ", x ", x.scalar_type());
}

// A job on contiguous factors. Scalers first is the job whose input is the layer's output and the other way round.
Job job_of(const Tensor &T, const Tensor &S, int64_t M, int64_t in, int64_t out, bool scalers_first) {
  const int64_t N = S.size(0), m = S.size(1), n = S.size(2), p = T.size(1), q = T.size(2);
  Job job{};
  job.M = M, job.N = N, job.T = T.const_data_ptr(), job.S = S.const_data_ptr();
  if (scalers_first) {
    job.m = n, job.n = m, job.p = q, job.q = p, job.in = out, job.out = in;
    job.T_a = 1, job.T_k = q, job.S_i = 1, job.S_j = n;
  } else {
    job.m = m, job.n = n, job.p = p, job.q = q, job.in = in, job.out = out;
    job.T_a = q, job.T_k = 1, job.S_i = n, job.S_j = 1;
  }
  return job;
}

void check_factors(const Tensor &x, const Tensor &T, const Tensor &S) {
  TORCH_CHECK_VALUE(T.dim() == 3, "templates must have shape (N, p, q), got ", T.sizes());
  TORCH_CHECK_VALUE(
      S.dim() == 3 && S.size(0) == T.size(0), "scalers must have shape (", T.size(0), ", m, n), got ", S.sizes());
  check_alike("x", x, x);
  check_alike("templates", T, x);
  check_alike("scalers", S, x);
  check_rows("x", x, S.size(2), T.size(2));
}

Tensor chain(
    const Tensor &x_, const Tensor &T_, const Tensor &S_, const std::optional<Tensor> &bias_, int64_t out,
    bool scalers_first) {
  const auto element = element_of(x_);
  check_factors(x_, T_, S_);
  const Tensor x = x_.contiguous(), T = T_.contiguous(), S = S_.contiguous();
  Tensor bias;
  if (bias_) {
    check_alike("bias", *bias_, x);
    TORCH_CHECK_VALUE(
        bias_->dim() == 1 && bias_->size(0) == out, "bias must have shape (", out, "), got ", bias_->sizes());
    bias = bias_->contiguous();
  }
  Tensor y = at::empty({x.size(0), out}, x.options());
  check_rows("the result", y, S.size(1), T.size(1));
  if (x.size(0) == 0) return y;
  Job job = job_of(T, S, x.size(0), x.size(1), out, scalers_first);
  (scalers_first ? job.dy : job.x) = x.const_data_ptr();
  (scalers_first ? job.dx : job.y) = y.data_ptr();
  (scalers_first ? job.dx_bias : job.y_bias) = bias.defined() ? bias.const_data_ptr() : nullptr;
  weit::run_chain(job, element, at::globalContext().deterministicAlgorithms(), nullptr, nullptr);
  return y;
}

std::tuple<Tensor, Tensor, Tensor> chain_backward(
    const Tensor &dy_, const Tensor &x_, const Tensor &T_, const Tensor &S_, c10::List<bool> wanted,
    bool scalers_first) {
  const auto element = element_of(x_);
  check_factors(x_, T_, S_);
  check_alike("dy", dy_, x_);
  check_rows("dy", dy_, S_.size(1), T_.size(1));
  TORCH_CHECK_VALUE(dy_.size(0) == x_.size(0), "dy has ", dy_.size(0), " rows, x ", x_.size(0));
  TORCH_CHECK_VALUE(wanted.size() == 3, "need must have 3 entries, got ", wanted.size());
  const bool need[3] = {wanted[0], wanted[1], wanted[2]};
  const Tensor dy = dy_.contiguous(), x = x_.contiguous(), T = T_.contiguous(), S = S_.contiguous();
  const auto made = [](bool wanted, const Tensor &like) {
    return wanted ? at::empty(like.sizes(), like.options()) : at::empty({0}, like.options());
  };
  Tensor dx = made(need[0], x), dT = made(need[1], T), dS = made(need[2], S);
  if (x.size(0) == 0) return {dx, dT.zero_(), dS.zero_()};
  if (!need[0] && !need[1] && !need[2]) return {dx, dT, dS};
  Job job = job_of(T, S, x.size(0), x.size(1), dy.size(1), scalers_first);
  job.x = (scalers_first ? dy : x).const_data_ptr();
  job.dy = (scalers_first ? x : dy).const_data_ptr();
  if (need[0]) (scalers_first ? job.y : job.dx) = dx.data_ptr();
  job.dT = need[1], job.dS = need[2];
  weit::run_chain(
      job, element, at::globalContext().deterministicAlgorithms(), need[1] ? dT.data_ptr() : nullptr,
      need[2] ? dS.data_ptr() : nullptr);
  return {dx, dT, dS};
}

}  // namespace

TORCH_LIBRARY(weit_cpp, library) {
  library.def("chain(Tensor x, Tensor templates, Tensor scalers, Tensor? bias, int out, bool scalers_first) -> Tensor");
  library.def(
      "chain_backward(Tensor dy, Tensor x, Tensor templates, Tensor scalers, bool[] need, bool scalers_first) "
      "-> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(weit_cpp, CPU, library) {
  library.impl("chain", chain);
  library.impl("chain_backward", chain_backward);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("instruction_sets", &weit::instruction_sets, "Those with kernels for this CPU, the best first.");
  module.def("instruction_set", &weit::instruction_set, "The one in use.");
  module.def("use_instruction_set", &weit::use_instruction_set, "Use another, for tests; not while others compute.");
}
