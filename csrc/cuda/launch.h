// What a kernel needs to know of the device, and how every kernel is launched. Sources include this file in angle
// brackets: under tests/weit_kernels/cuda an emulator's file of the same name is found first.
#pragma once

#include <cuda_runtime_api.h>

namespace weit::cuda {

struct Device {
  int processors, capability, shared_bytes;  // capability: 90 for sm_90; shared memory that one block can have
};

struct Grid {
  dim3 blocks;
  int threads, shared_bytes;
  bool early = false;  // sm_90: may start before the kernel ahead ends, and calls wait_for_previous_kernel()
};

inline cudaError_t current_device(Device &device) {
  int index = 0, major = 0, minor = 0;
  cudaError_t error = cudaGetDevice(&index);
  const auto get = [&](int &value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, index);
  };
  get(device.processors, cudaDevAttrMultiProcessorCount);
  get(device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  get(major, cudaDevAttrComputeCapabilityMajor);
  get(minor, cudaDevAttrComputeCapabilityMinor);
  device.capability = 10 * major + minor;
  return error;
}

// Every kernel takes one argument, and its shared memory from shared_memory().
template <class Job>
cudaError_t launch(void (*kernel)(Job), const Grid &grid, cudaStream_t stream, const Job &job) {
  const void *function = reinterpret_cast<const void *>(kernel);
  if (grid.shared_bytes > 48 << 10) {  // always the device's most: another thread may launch the same kernel now
    Device device;
    if (const auto error = current_device(device)) return error;
    const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (const auto error = cudaFuncSetAttribute(function, attribute, device.shared_bytes)) return error;
  }
  bool waits = false;  // code made from older PTX does not wait for the kernel before, so it must not start early
  if (grid.early) {
    cudaFuncAttributes attributes;
    if (const auto error = cudaFuncGetAttributes(&attributes, function)) return error;
    waits = attributes.ptxVersion >= 90;
  }
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = waits;
  void *arguments[] = {const_cast<Job *>(&job)};
  return cudaLaunchKernelExC(&config, function, arguments);
}

}  // namespace weit::cuda
