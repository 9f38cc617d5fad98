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

// W (out, in, taps) = sum_t kron(S_t, T_t), or kron(T_t, S_t) when interleaved; T is (N, p, q, taps), all axes after q
// dense: T_k is the stride of (k, tap) taken together.
struct Synth {
  Element element;
  int64_t N, m, n, p, q, taps, out, in;
  const void *T, *S;
  void *W;
  int64_t T_t, T_a, T_k, S_t, S_i, S_j;
  bool interleaved;
};

// dT (N, p, q, taps) and dS (N, m, n), float32 and contiguous, each where not null: added to, from dW (out, in, taps).
struct SynthGrads {
  Synth forward;  // its W is not read
  const void *dW;
  float *dT, *dS;
  void *scratch;  // partial sums: as many bytes as synth_grads_scratch() says, or more
  int64_t scratch_bytes;
};

// Every call returns what the runtime says; cudaErrorNotSupported where no kernel fits the sizes or the device.
cudaError_t few_rows(const Chain &chain, cudaStream_t stream);
cudaError_t templates_first(const Chain &chain, cudaStream_t stream);
Splits weight_grads_splits(const WeightGrads &job);  // how many fill the current device
cudaError_t weight_grads(const WeightGrads &job, cudaStream_t stream);
cudaError_t synth(const Synth &job, cudaStream_t stream);
int64_t synth_grads_scratch(const SynthGrads &job);
cudaError_t synth_grads(const SynthGrads &job, cudaStream_t stream);

}  // namespace weit::cuda
