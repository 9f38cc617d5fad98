// The CUDA part of the extension `weit_kernels._C`: operators of the library `weit_cuda` on CUDA tensors, block layout,
// no autograd. As in bindings.cpp, what is checked is what memory safety needs; that some tensor is on a GPU, and so
// all are, the dispatcher saw. The stream is an argument and the device the current one, so that torch's own CUDA
// headers are not needed.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "cuda/kernels.h"

namespace {

using at::Tensor;
using namespace weit::cuda;

cudaStream_t stream_of(int64_t handle) { return reinterpret_cast<cudaStream_t>(handle); }

void check(cudaError_t error, const char *name) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // the runtime keeps it, and whoever asks next would take it for its own
  const bool missing = error == cudaErrorNotSupported || error == cudaErrorNoKernelImageForDevice;
  TORCH_CHECK_NOT_IMPLEMENTED(
      !missing, name, " has no CUDA kernel for these sizes on this GPU: ask for backend='triton' or 'torch'");
  TORCH_CHECK(false, name, " failed: ", cudaGetErrorString(error));
}

Element element_of(const char *name, const Tensor &t) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return kFloat;
    case at::kHalf:
      return kHalf;
    case at::kBFloat16:
      return kBFloat16;
    default:
      TORCH_CHECK_TYPE(false, name, " must be float32, float16 or bfloat16, got ", t.scalar_type());
  }
}

void check_alike(const char *name, const Tensor &t, const char *like_name, const Tensor &like) {
  TORCH_CHECK_VALUE(t.device() == like.device(), name, " is on ", t.device(), ", ", like_name, " on ", like.device());
  TORCH_CHECK_TYPE(
      t.scalar_type() == like.scalar_type(), name, " has dtype ", t.scalar_type(), ", ", like_name, " ",
      like.scalar_type());
}

void check_rows(const char *name, const Tensor &t, int64_t count, int64_t size) {
  TORCH_CHECK_VALUE(
      t.dim() == 2 && t.size(1) >= 1 && t.size(1) <= count * size, name, " must have shape (M, 1 to ", count * size,
      "), got ", t.sizes());
}

void check_factors(const char *name, const Tensor &like, const Tensor &T, const Tensor &S) {
  TORCH_CHECK_VALUE(T.dim() == 3, "templates must have shape (N, p, q), got ", T.sizes());
  TORCH_CHECK_VALUE(
      S.dim() == 3 && S.size(0) == T.size(0), "scalers must have shape (", T.size(0), ", m, n), got ", S.sizes());
  TORCH_CHECK_VALUE(T.numel() > 0 && S.numel() > 0, "templates ", T.sizes(), " and scalers ", S.sizes(), " are empty");
  check_alike("templates", T, name, like);
  check_alike("scalers", S, name, like);
}

// The fields that every job has of its factors.
template <class Job>
void set_factors(Job &job, const Tensor &T, const Tensor &S) {
  job.N = S.size(0), job.m = S.size(1), job.n = S.size(2), job.p = T.size(1);
  job.T = T.const_data_ptr(), job.T_t = T.stride(0), job.T_a = T.stride(1), job.T_k = T.stride(2);
  job.S = S.const_data_ptr(), job.S_t = S.stride(0), job.S_i = S.stride(1), job.S_j = S.stride(2);
}

template <cudaError_t (*kernel)(const Chain &, cudaStream_t)>
Tensor chain(
    const Tensor &x_, const Tensor &T, const Tensor &S, const std::optional<Tensor> &bias_, int64_t out,
    int64_t stream) {
  Chain job{};
  job.element = element_of("x", x_);
  check_factors("x", x_, T, S);
  check_rows("x", x_, S.size(2), T.size(2));
  const Tensor x = x_.contiguous();
  Tensor bias;
  if (bias_) {
    check_alike("bias", *bias_, "x", x);
    const bool fits = bias_->dim() == 1 && bias_->size(0) == out;
    TORCH_CHECK_VALUE(fits, "bias must have shape (", out, "), got ", bias_->sizes());
    bias = bias_->contiguous();
  }
  Tensor y = at::empty({x.size(0), out}, x.options());
  check_rows("the result", y, S.size(1), T.size(1));
  set_factors(job, T, S);
  job.M = x.size(0), job.q = T.size(2), job.in = x.size(1), job.out = out;
  job.x = x.const_data_ptr(), job.y = y.data_ptr();
  job.bias = bias.defined() ? bias.const_data_ptr() : nullptr;
  check(kernel(job, stream_of(stream)), kernel == few_rows ? "few_rows" : "templates_first");
  return y;
}

std::tuple<Tensor, Tensor> factor_grads(
    const Tensor &dy_, const Tensor &x_, const Tensor &T, const Tensor &S, c10::List<bool> need, int64_t stream) {
  WeightGrads job{};
  job.element = element_of("x", x_);
  check_factors("x", x_, T, S);
  check_rows("x", x_, S.size(2), T.size(2));
  check_alike("dy", dy_, "x", x_);
  check_rows("dy", dy_, S.size(1), T.size(1));
  TORCH_CHECK_VALUE(dy_.size(0) == x_.size(0), "dy has ", dy_.size(0), " rows, x ", x_.size(0));
  TORCH_CHECK_VALUE(need.size() == 2, "need must have 2 entries, got ", need.size());
  const Tensor dy = dy_.contiguous(), x = x_.contiguous();
  set_factors(job, T, S);
  job.M = x.size(0), job.q = T.size(2), job.in = x.size(1), job.out = dy.size(1);
  job.dy = dy.const_data_ptr(), job.x = x.const_data_ptr();
  job.splits = weight_grads_splits(job);
  const auto parts = [&x](bool wanted, int64_t splits, const Tensor &like) {
    const auto options = x.options().dtype(at::kFloat);
    return wanted ? at::empty({splits, like.size(0), like.size(1), like.size(2)}, options) : at::empty({0}, options);
  };
  const Tensor dT = parts(need[0], job.splits.dT, T), dS = parts(need[1], job.splits.dS, S);
  if (need[0]) job.dT = dT.data_ptr<float>();
  if (need[1]) job.dS = dS.data_ptr<float>();
  check(weight_grads(job, stream_of(stream)), "weight_grads");
  const auto total = [&x](bool wanted, const Tensor &parts) {
    return (wanted ? parts.size(0) == 1 ? parts[0] : parts.sum(0) : parts).to(x.scalar_type());
  };
  return {total(need[0], dT), total(need[1], dS)};
}

}  // namespace

TORCH_LIBRARY(weit_cuda, library) {
  library.def(
      "few_rows(Tensor x, Tensor templates, Tensor scalers, Tensor? bias, int out, int stream) -> Tensor");
  library.def(
      "templates_first(Tensor x, Tensor templates, Tensor scalers, Tensor? bias, int out, int stream) -> Tensor");
  library.def(
      "weight_grads(Tensor dy, Tensor x, Tensor templates, Tensor scalers, bool[] need, int stream) "
      "-> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(weit_cuda, CUDA, library) {
  library.impl("few_rows", chain<few_rows>);
  library.impl("templates_first", chain<templates_first>);
  library.impl("weight_grads", factor_grads);
}
