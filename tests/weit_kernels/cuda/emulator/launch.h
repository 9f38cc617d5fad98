// The emulator's csrc/cuda/launch.h: the same functions.
#pragma once

#include <cuda_runtime_api.h>

namespace weit::cuda {

struct Device {
  int processors, capability, shared_bytes;
};

struct Grid {
  dim3 blocks;
  int threads, shared_bytes;
  bool early = false;
};

inline cudaError_t current_device(Device &device) {
  const auto &s = emulator::settings;
  const int shared = s.major == 8 ? 163 << 10 : s.major == 12 ? 99 << 10 : 227 << 10;
  device = {s.processors, 10 * s.major + s.minor, shared};
  return cudaSuccess;
}

template <class Job>
cudaError_t launch(void (*kernel)(Job), const Grid &grid, cudaStream_t, const Job &job) {
  const bool done = emulator::run([&] { kernel(job); }, grid.blocks, dim3(grid.threads), grid.shared_bytes);
  return done ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace weit::cuda
