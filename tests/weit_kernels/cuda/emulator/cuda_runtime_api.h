// Stands in for CUDA's header of this name when a C++ compiler builds the kernels for the emulator: just what they use.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "core.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801,
};
using cudaStream_t = struct CUstream_st *;

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char *cudaGetErrorString(cudaError_t) { return emulator::error().c_str(); }

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#define __CUDA_ARCH_FEAT_SM90_ALL  // instructions of sm_90a are emulated too

inline void __syncthreads() { emulator::sync(0, int(blockDim.x * blockDim.y * blockDim.z)); }

inline void __syncwarp(unsigned = 0xffffffff) {
  int nothing = 0;
  emulator::together(emulator::warp(), 32, "__syncwarp", nothing, [](int *const *) {});
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  struct Call {
    T value, result;
  } call{value, {}};
  emulator::together(emulator::warp(), 32, "__shfl_xor_sync", call, [mask](Call *const *lanes) {
    for (int lane = 0; lane < 32; ++lane) lanes[lane]->result = lanes[lane ^ mask]->value;
  });
  return call.result;
}

inline float __uint_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
