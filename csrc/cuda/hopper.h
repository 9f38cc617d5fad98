// Instructions of sm_90a, each a function: barriers that count bytes, copies of boxes by the tensor memory accelerator,
// and matrix products of warpgroups. Sources include this file in angle brackets: under tests/weit_kernels/cuda an
// emulator's file of the same name, with the same functions, is found first.
//
// Where a kernel that uses them is not compiled for sm_90a it is empty, and its bound on threads, WEIT_SM90A_THREADS,
// shows it: see built_for_sm90a().
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>

#include "kernels.h"
#include "ptx.h"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define WEIT_SM90A_THREADS(count) (count)
#else
#define WEIT_SM90A_THREADS(count) 32
#pragma nv_diag_suppress 177  // names that an empty kernel does not use
#endif

namespace weit::cuda {

using TensorMap = CUtensorMap;

// One axis of a tensor of 16-bit elements: its size, its stride in elements (of the first axis 1), and how much of it
// a box holds. A permuted box's first axis is 64 long at most: 128 bytes, a row of shared memory.
struct Axis {
  int64_t size, stride;
  int box;
};

// What load_box(), which permutes, and store_box(), which does not, need to know. cudaErrorNotSupported where the
// driver does not take the alignment or the sizes.
template <int RANK>
cudaError_t make_tensor_map(
    TensorMap &map, Element element, const void *base, const Axis (&axes)[RANK], bool permuted = true) {
  static const auto encode = [] {  // looked up, so that nothing has to be linked with the driver
    void *function = nullptr;
    cudaDriverEntryPointQueryResult found;
    const auto error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) function = nullptr, (void)cudaGetLastError();
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  if (encode == nullptr) return cudaErrorNotSupported;
  cuuint64_t sizes[RANK], strides[RANK];
  cuuint32_t box[RANK], steps[RANK];
  for (int i = 0; i < RANK; ++i) {
    sizes[i] = axes[i].size, strides[i] = 2 * axes[i].stride, box[i] = axes[i].box, steps[i] = 1;
  }
  const auto type = element == kHalf ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const CUresult result = encode(
      &map, type, RANK, const_cast<void *>(base), sizes, strides + 1, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      permuted ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorNotSupported;
}

// Whether the current device gets the code for sm_90a, and not an empty kernel for sm_90.
template <class Job>
bool built_for_sm90a(void (*kernel)(Job), int threads) {
  cudaFuncAttributes attributes;
  const auto error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void *>(kernel));
  if (error != cudaSuccess) (void)cudaGetLastError();
  return error == cudaSuccess && attributes.maxThreadsPerBlock >= threads;
}

// A barrier in shared memory. A phase ends when `arrivals` threads have arrived and all expected bytes are there; then
// the next begins. barrier_wait() takes the parity of the phase that it waits for: 0, 1, 0, ...; of one that has not
// begun yet, the parity of the phase before it counts as ended.
__device__ __forceinline__ void barrier_init(uint64_t *barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// After the barriers of a block are set up, and before __syncthreads(): copies in the background see them too.
__device__ __forceinline__ void barriers_ready() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void barrier_arrive(uint64_t *barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, and lets the phase last until `bytes` more have been copied.
__device__ __forceinline__ void barrier_expect(uint64_t *barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void barrier_wait(uint64_t *barrier, uint32_t parity) {
  uint32_t ended = 0;
  while (!ended) {
    asm volatile(
        "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
        : "=r"(ended)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
}

// Copies the box that starts at some coordinates, zeros where it is outside the tensor, and counts its bytes at the
// barrier. `to` is a multiple of 1024 bytes; of each row of 128 bytes, vector v of 16 bytes goes to v ^ (row % 8).
__device__ __forceinline__ void load_box(void *to, const TensorMap &map, uint64_t *barrier, int c0, int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
      ::"r"(shared_address(to)), "l"(&map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}

__device__ __forceinline__ void load_box(
    void *to, const TensorMap &map, uint64_t *barrier, int c0, int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared_address(to)), "l"(&map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

// Copies a box to global memory in the background, but for what is outside the tensor. `from` is a multiple of 128
// bytes.
__device__ __forceinline__ void store_box(const void *from, const TensorMap &map, int c0, int c1, int c2) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
               "r"(shared_address(from)), "r"(c0), "r"(c1), "r"(c2)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Until the boxes that this thread stored have been read, and shared memory may be used again or end.
__device__ __forceinline__ void stores_wait() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// What this thread wrote to shared memory can be read by products and copies of boxes that start after a barrier.
__device__ __forceinline__ void show_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// __syncthreads() for `count` threads; `id` 1 to 15.
__device__ __forceinline__ void sync_threads(int id, int count) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(count) : "memory");
}

// Registers of each of a warpgroup's threads from here on.
template <int COUNT>
__device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <int COUNT>
__device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

}  // namespace weit::cuda
