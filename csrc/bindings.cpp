// The extension `weit_kernels._C`: operators of the library `weit_cpp` on plain CPU tensors, block layout, no autograd.
// `weit_kernels/ops.py` calls them below its own operators, so arguments were checked; what is checked again is what
// memory safety needs. The dispatcher releases the interpreter's lock.
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>
#include <torch/version.h>

#include <string>
#include <tuple>

#include "cpu/driver.h"

namespace {

using at::Tensor;
using weit::Job;
using weit::Size;
using weit::Window;
using Grads = std::tuple<Tensor, Tensor, Tensor>;

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

// A job on contiguous factors, T (N * taps, p, q). Scalers first is the job whose input is the layer's output and the
// other way round.
Job job_of(const Tensor &T, const Tensor &S, int64_t M, int64_t in, int64_t out, bool scalers_first) {
  const int64_t N = S.size(0), m = S.size(1), n = S.size(2), p = T.size(1), q = T.size(2);
  Job job{};
  job.near = job.far = {1, M}, job.window.taps = job.window.step = {1, 1};
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
  element_of(x);  // refuses other dtypes, also where there is nothing to compute
  TORCH_CHECK_VALUE(
      T.dim() == 3 && T.size(0) >= 1, "templates must have shape (N, p, q), N at least 1, got ", T.sizes());
  TORCH_CHECK_VALUE(
      S.dim() == 3 && S.size(0) == T.size(0), "scalers must have shape (", T.size(0), ", m, n), got ", S.sizes());
  check_alike("x", x, x);
  check_alike("templates", T, x);
  check_alike("scalers", S, x);
  check_rows("x", x, S.size(2), T.size(2));
}

Tensor checked_bias(const std::optional<Tensor> &bias, const Tensor &x, int64_t out) {
  if (!bias) return {};
  check_alike("bias", *bias, x);
  TORCH_CHECK_VALUE(bias->dim() == 1 && bias->size(0) == out, "bias must have shape (", out, "), got ", bias->sizes());
  return bias->contiguous();
}

void check_wanted(const Tensor &dy, const Tensor &x, const c10::List<bool> &wanted) {
  TORCH_CHECK_VALUE(dy.size(0) == x.size(0), "dy has ", dy.size(0), " rows, x ", x.size(0));
  TORCH_CHECK_VALUE(wanted.size() == 3, "need must have 3 entries, got ", wanted.size());
}

// A gradient to fill in, empty where nobody wants it.
Tensor made(bool wanted, const Tensor &like) {
  return wanted ? at::empty(like.sizes(), like.options()) : at::empty({0}, like.options());
}

void run_forward(Job job, const Tensor &x, const Tensor &bias, Tensor &y, bool scalers_first) {
  (scalers_first ? job.dy : job.x) = x.const_data_ptr();
  (scalers_first ? job.dx : job.y) = y.data_ptr();
  (scalers_first ? job.dx_bias : job.y_bias) = bias.defined() ? bias.const_data_ptr() : nullptr;
  weit::run_chain(job, element_of(x), at::globalContext().deterministicAlgorithms(), nullptr, nullptr);
}

// Fills in those of dx, dT and dS that are not empty.
void run_backward(
    Job job, const Tensor &dy, const Tensor &x, Tensor &dx, Tensor &dT, Tensor &dS, bool scalers_first) {
  const auto wanted = [](Tensor &grad) { return grad.numel() ? grad.data_ptr() : nullptr; };
  job.x = (scalers_first ? dy : x).const_data_ptr();
  job.dy = (scalers_first ? x : dy).const_data_ptr();
  (scalers_first ? job.y : job.dx) = wanted(dx);
  weit::run_chain(job, element_of(x), at::globalContext().deterministicAlgorithms(), wanted(dT), wanted(dS));
}

Tensor chain(
    const Tensor &x_, const Tensor &T_, const Tensor &S_, const std::optional<Tensor> &bias_, int64_t out,
    bool scalers_first) {
  check_factors(x_, T_, S_);
  const Tensor x = x_.contiguous(), T = T_.contiguous(), S = S_.contiguous(), bias = checked_bias(bias_, x, out);
  Tensor y = at::empty({x.size(0), out}, x.options());
  check_rows("the result", y, S.size(1), T.size(1));
  if (x.size(0) == 0) return y;
  run_forward(job_of(T, S, x.size(0), x.size(1), out, scalers_first), x, bias, y, scalers_first);
  return y;
}

Grads chain_backward(
    const Tensor &dy_, const Tensor &x_, const Tensor &T_, const Tensor &S_, c10::List<bool> wanted,
    bool scalers_first) {
  check_factors(x_, T_, S_);
  check_alike("dy", dy_, x_);
  check_rows("dy", dy_, S_.size(1), T_.size(1));
  check_wanted(dy_, x_, wanted);
  const Tensor dy = dy_.contiguous(), x = x_.contiguous(), T = T_.contiguous(), S = S_.contiguous();
  Tensor dx = made(wanted[0], x), dT = made(wanted[1], T), dS = made(wanted[2], S);
  if (x.size(0) == 0) return {dx, dT.zero_(), dS.zero_()};
  if (!dx.numel() && !dT.numel() && !dS.numel()) return {dx, dT, dS};
  run_backward(job_of(T, S, x.size(0), x.size(1), dy.size(1), scalers_first), dy, x, dx, dT, dS, scalers_first);
  return {dx, dT, dS};
}

// A convolution of images that moves by one pixel: sizes of its maps, and the job that each product of it is.
struct Convolution {
  Size in, out, padding;
  Window window{};

  Convolution(const Tensor &x, const Tensor &T, at::IntArrayRef pads, at::IntArrayRef steps) {
    TORCH_CHECK_VALUE(x.dim() == 4 && T.dim() == 5, "x must have 4 axes and templates 5, got ", x.sizes(), T.sizes());
    TORCH_CHECK_VALUE(pads.size() == 2 && steps.size() == 2, "padding and dilation must have 2 entries");
    TORCH_CHECK_VALUE(pads[0] >= 0 && pads[1] >= 0, "padding must not be negative, got ", pads);
    TORCH_CHECK_VALUE(steps[0] >= 1 && steps[1] >= 1, "dilation must be positive, got ", steps);
    in = {x.size(2), x.size(3)}, padding = {pads[0], pads[1]};
    TORCH_CHECK_VALUE(in.height >= 1 && in.width >= 1, "images must not be empty, got ", x.sizes());
    TORCH_CHECK_VALUE(T.size(3) >= 1 && T.size(4) >= 1, "templates must have taps, got ", T.sizes());
    window.taps = {T.size(3), T.size(4)}, window.step = {steps[0], steps[1]};
    out = {in.height + 2 * padding.height - reach().height, in.width + 2 * padding.width - reach().width};
    TORCH_CHECK_VALUE(out.height >= 1 && out.width >= 1, "the padded images are smaller than the window: ", x.sizes());
  }

  // How far apart the first and the last tap are.
  Size reach() const {
    return {(window.taps.height - 1) * window.step.height, (window.taps.width - 1) * window.step.width};
  }

  bool windowed() const { return weit::pixels(window.taps) > 1 || padding.height || padding.width; }

  // Tokens are pixels of the input or of the output; the window reads the other one.
  Job job(
      const Tensor &T, const Tensor &S, int64_t images, int64_t inn, int64_t outs, bool of_input,
      bool scalers_first) const {
    Job job = job_of(T, S, images * weit::pixels(of_input ? in : out), inn, outs, scalers_first);
    job.maps = true, job.windowed = windowed();
    job.near = of_input ? in : out, job.far = of_input ? out : in;
    job.window = window;
    job.window.before = of_input ? Size{reach().height - padding.height, reach().width - padding.width} : padding;
    job.window.backwards = scalers_first;
    return job;
  }
};

// T (N, p, q, taps) as (N * taps, p, q), and back.
Tensor by_tap(const Tensor &T) { return T.flatten(3).permute({0, 3, 1, 2}).contiguous().flatten(0, 1); }
Tensor from_taps(const Tensor &dT, const Tensor &T) {
  if (dT.size(0) == T.size(0)) return dT.view(T.sizes());  // permuted axes of one keep strides that DDP warns of
  return dT.view({T.size(0), -1, T.size(1), T.size(2)}).permute({0, 2, 3, 1}).contiguous().view(T.sizes());
}

Tensor conv(
    const Tensor &x_, const Tensor &T_, const Tensor &S_, const std::optional<Tensor> &bias_, int64_t out,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool scalers_first) {
  const Convolution layer(x_, T_, padding, dilation);
  check_factors(x_.select(3, 0).select(2, 0), T_.select(4, 0).select(3, 0), S_);
  const Tensor x = x_.contiguous(), T = by_tap(T_), S = S_.contiguous(), bias = checked_bias(bias_, x, out);
  Tensor y = at::empty({x.size(0), out, layer.out.height, layer.out.width}, x.options());
  check_rows("the result", y.select(3, 0).select(2, 0), S.size(1), T.size(1));
  if (x.size(0) == 0) return y;
  run_forward(layer.job(T, S, x.size(0), x.size(1), out, false, scalers_first), x, bias, y, scalers_first);
  return y;
}

Grads conv_backward(
    const Tensor &dy_, const Tensor &x_, const Tensor &T_, const Tensor &S_, c10::List<bool> wanted,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool scalers_first) {
  const Convolution layer(x_, T_, padding, dilation);
  check_factors(x_.select(3, 0).select(2, 0), T_.select(4, 0).select(3, 0), S_);
  check_alike("dy", dy_, x_);
  TORCH_CHECK_VALUE(
      dy_.dim() == 4 && dy_.size(2) == layer.out.height && dy_.size(3) == layer.out.width,
      "dy has maps of another size than the result: ", dy_.sizes());
  check_rows("dy", dy_.select(3, 0).select(2, 0), S_.size(1), T_.size(1));
  check_wanted(dy_, x_, wanted);
  const Tensor dy = dy_.contiguous(), x = x_.contiguous(), T = by_tap(T_), S = S_.contiguous();
  Tensor dx = made(wanted[0], x), dT = made(wanted[1], T), dS = made(wanted[2], S);
  if (x.size(0) == 0) return {dx, dT.numel() ? dT.zero_().view_as(T_) : dT, dS.zero_()};
  const auto run = [&](bool of_input, Tensor &dx, Tensor &dT, Tensor &dS) {
    const Job job = layer.job(T, S, x.size(0), x.size(1), dy.size(1), of_input, scalers_first);
    if (dx.numel() || dT.numel() || dS.numel()) run_backward(job, dy, x, dx, dT, dS, scalers_first);
  };
  // With a window the templates-first dx reads dy around the input's pixels, the others x around the output's.
  Tensor none = at::empty({0}, x.options());
  if (layer.windowed() && !scalers_first) {
    run(true, dx, none, none);
    run(false, none, dT, dS);
  } else {
    run(true, dx, dT, dS);
  }
  return {dx, dT.numel() ? from_taps(dT, T_) : dT, dS};
}

}  // namespace

TORCH_LIBRARY(weit_cpp, library) {
  library.def("chain(Tensor x, Tensor templates, Tensor scalers, Tensor? bias, int out, bool scalers_first) -> Tensor");
  library.def(
      "chain_backward(Tensor dy, Tensor x, Tensor templates, Tensor scalers, bool[] need, bool scalers_first) "
      "-> (Tensor, Tensor, Tensor)");
  library.def(
      "conv(Tensor x, Tensor templates, Tensor scalers, Tensor? bias, int out, int[] padding, int[] dilation, "
      "bool scalers_first) -> Tensor");
  library.def(
      "conv_backward(Tensor dy, Tensor x, Tensor templates, Tensor scalers, bool[] need, int[] padding, "
      "int[] dilation, bool scalers_first) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(weit_cpp, CPU, library) {
  library.impl("chain", chain);
  library.impl("chain_backward", chain_backward);
  library.impl("conv", conv);
  library.impl("conv_backward", conv_backward);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.attr("torch") = std::to_string(TORCH_VERSION_MAJOR) + "." + std::to_string(TORCH_VERSION_MINOR);
#ifdef __x86_64__
  __builtin_cpu_init();
  module.attr("amd") = bool(__builtin_cpu_is("amd"));
#else
  module.attr("amd") = false;
#endif
  module.attr("fixed_parts") = weit::kFixedParts;
  module.attr("most_sums") = weit::kMostSums;
  module.attr("few_parts") = weit::kFewParts;
  module.def("instruction_sets", &weit::instruction_sets, "Those with kernels for this CPU, the best first.");
  module.def("instruction_set", &weit::instruction_set, "The one in use.");
  module.def("use_instruction_set", &weit::use_instruction_set, "Use another, for tests; not while others compute.");
  module.def("block_bytes", &weit::block_bytes, "What one core's block of tokens may take.");
}
