// What the bindings call: CUDA kernels on raw pointers, sizes and a stream. No torch header is needed here or in any
// source beside it, so that nvcc alone can check them, and a C++ compiler can run them under tests/weit_kernels/cuda.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

namespace weit::cuda {

enum Element { kFloat, kHalf, kBFloat16 };

// y[b,i,a] = bias[i,a] + sum_{t,j,k} S[t,i,j] T[t,a,k] x[b,j,k], with x (M, in) and y (M, out) contiguous; in may be
// less than n q, out less than m p. T and S may have any strides, so scalers and templates can be passed transposed.
struct Chain {
  Element element;
  int64_t M, N, m, n, p, q, in, out;
  const void *x, *T, *S, *bias;  // no bias: null
  void *y;
  int64_t T_t, T_a, T_k, S_t, S_i, S_j;
};

// How many partial sums of each gradient a call makes.
struct Splits {
  int64_t dT, dS;
};

// dT[t,a,k] = sum_{b,i,j} S dy x and dS[t,i,j] = sum_{b,a,k} T dy x, each where not null: float32, contiguous, as
// partial sums one after the other, (splits.dT, N, p, q) and (splits.dS, N, m, n), which the caller adds up. For n > m
// it is cheaper to exchange x with dy and to transpose both factors: the sums do not care which side is the input.
struct WeightGrads {
  Element element;
  int64_t M, N, m, n, p, q, in, out;
  const void *dy, *x, *T, *S;
  float *dT, *dS;
  int64_t T_t, T_a, T_k, S_t, S_i, S_j;
  Splits splits;  // what weight_grads_splits() said
};

// Whether copies of 16 bytes can start there.
inline bool vectors_aligned(const void *pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Every call returns what the runtime says; cudaErrorNotSupported where no kernel fits the sizes or the device.
cudaError_t few_rows(const Chain &chain, cudaStream_t stream);
cudaError_t templates_first(const Chain &chain, cudaStream_t stream);
Splits weight_grads_splits(const WeightGrads &job);  // how many fill the current device
cudaError_t weight_grads(const WeightGrads &job, cudaStream_t stream);

}  // namespace weit::cuda
