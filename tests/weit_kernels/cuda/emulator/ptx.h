// The emulator's csrc/cuda/ptx.h: the same functions; what a warp does together its lanes do at a meeting.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>
#include <string.h>

#include <functional>

#include "../../../../csrc/cuda/element.h"

namespace weit::cuda {

inline char *shared_memory() { return emulator::shared_memory(); }

inline uint32_t shared_address(const void *pointer) { return emulator::shared_address(pointer); }

inline void copy_async(void *to, const void *from, int bytes) {
  if (shared_address(to) % 16 || (bytes && reinterpret_cast<uintptr_t>(from) % 16)) emulator::fail("copy_async: align");
  char *const at = emulator::shared_pointer(shared_address(to), 16);
  const auto copy = [=] {
    memset(at, 0, 16);
    if (bytes) memcpy(at, from, bytes);
  };
  if (emulator::settings.copies_late)
    emulator::current->copies.back().push_back(copy);
  else
    copy();
}

inline void copies_commit() { emulator::current->copies.emplace_back(); }

template <int LEFT>
void copies_wait() {
  auto &groups = emulator::current->copies;
  while (groups.size() > LEFT + 1) {  // the last one is open
    for (const auto &copy : groups.front()) copy();
    groups.erase(groups.begin());
  }
}

inline void load_matrices(uint32_t (&to)[4], const void *row, bool transposed) {
  struct Call {
    uint32_t *to;
    uint32_t row;
  } call{to, shared_address(row)};
  if (call.row % 16) emulator::fail("ldmatrix: a row must start at a multiple of 16 bytes");
  emulator::together(emulator::warp(), 32, "ldmatrix", call, [transposed](Call *const *lanes) {
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i)
        for (int half = 0; half < 2; ++half) {
          const int across = 2 * (lane % 4) + half, down = lane / 4;
          const int r = transposed ? across : down, c = transposed ? down : across;
          const char *from = emulator::shared_pointer(lanes[8 * i + r]->row, 16);
          memcpy(reinterpret_cast<char *>(&lanes[lane]->to[i]) + 2 * half, from + 2 * c, 2);
        }
  });
}

inline void load_matrices(uint32_t (&to)[4], const void *row) { load_matrices(to, row, false); }
inline void load_transposed(uint32_t (&to)[4], const void *row) { load_matrices(to, row, true); }

template <class T>
float element_of(uint32_t word, int half) {
  T value;
  memcpy(&value, reinterpret_cast<const char *>(&word) + 2 * half, 2);
  return widened(value);
}

template <class T>
void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Call {
    float *sum;
    const uint32_t *a;
    uint32_t b[2];
  } call{sum, a, {b0, b1}};
  emulator::together(emulator::warp(), 32, "mma", call, [](Call *const *lanes) {
    float A[16][16], B[16][8];
    for (int lane = 0; lane < 32; ++lane)
      for (int half = 0; half < 2; ++half) {
        const int g = lane / 4, c = 2 * (lane % 4) + half;
        for (int i = 0; i < 4; ++i) A[g + 8 * (i % 2)][c + 8 * (i / 2)] = element_of<T>(lanes[lane]->a[i], half);
        for (int i = 0; i < 2; ++i) B[c + 8 * i][g] = element_of<T>(lanes[lane]->b[i], half);
      }
    for (int r = 0; r < 16; ++r) {
      float row[8] = {};
      for (int k = 0; k < 16; ++k)
        for (int c = 0; c < 8; ++c) row[c] += A[r][k] * B[k][c];
      for (int c = 0; c < 8; ++c) lanes[4 * (r % 8) + c / 2]->sum[2 * (r / 8) + c % 2] += row[c];
    }
  });
}

inline void prefetch(const void *) {}
inline void wait_for_previous_kernel() {}
inline void let_next_kernel_start() {}

}  // namespace weit::cuda
