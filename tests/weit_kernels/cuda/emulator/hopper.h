// The emulator's csrc/cuda/hopper.h: the same functions. Copies of boxes happen at once, or when somebody waits for
// their barrier; either way their bytes count at the barrier then.
#pragma once

#include <cuda_runtime_api.h>
#include <launch.h>
#include <ptx.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "../../../../csrc/cuda/kernels.h"

#define WEIT_SM90A_THREADS(count) (count)

namespace weit::cuda {

struct Axis {
  int64_t size, stride;
  int box;
};

struct alignas(64) TensorMap {
  const char *base;
  int rank;
  Axis axes[5];
};

template <int RANK>
cudaError_t make_tensor_map(
    TensorMap &map, Element, const void *base, const Axis (&axes)[RANK], bool permuted = true) {
  map.base = static_cast<const char *>(base), map.rank = RANK;
  std::copy(axes, axes + RANK, map.axes);
  bool good = reinterpret_cast<uintptr_t>(base) % 16 == 0 && axes[0].stride == 1;
  good &= permuted ? axes[0].box == 64 : axes[0].box % 8 == 0;
  for (int i = 0; i < RANK; ++i) good &= axes[i].size > 0 && axes[i].box > 0 && axes[i].box <= 256;
  for (int i = 1; i < RANK; ++i) good &= axes[i].stride % 8 == 0;
  return good ? cudaSuccess : cudaErrorNotSupported;
}

template <class Job>
bool built_for_sm90a(void (*)(Job), int) {
  return true;
}

// What the 64 bits of a barrier hold here.
struct Barrier {
  uint8_t arrivals, missing;
  uint8_t parity;  // of the phase that lasts
  uint8_t valid;
  int32_t bytes;  // expected and not there yet

  void proceed() {
    if (missing == 0 && bytes == 0) missing = arrivals, parity ^= 1;
  }
};
static_assert(sizeof(Barrier) == sizeof(uint64_t));

struct Copy {
  uint64_t *barrier;
  std::function<void()> run;
};
inline std::vector<Copy> copies_of_boxes;  // those that have not happened yet

inline Barrier &barrier_at(uint64_t *at) {
  if (emulator::shared_address(at) % 8) emulator::fail("a barrier must start at a multiple of 8 bytes");
  auto &barrier = *reinterpret_cast<Barrier *>(emulator::shared_pointer(emulator::shared_address(at), 8));
  if (barrier.valid != 1) emulator::fail("a barrier is used before it is set up");
  return barrier;
}

inline void barrier_init(uint64_t *at, int arrivals) {
  std::erase_if(copies_of_boxes, [at](const Copy &copy) { return copy.barrier == at; });  // of a launch that failed
  const Barrier barrier{uint8_t(arrivals), uint8_t(arrivals), 0, 1, 0};
  memcpy(at, &barrier, sizeof(barrier));
}

inline void barriers_ready() {}

inline void barrier_arrive(uint64_t *at) {
  Barrier &barrier = barrier_at(at);
  if (barrier.missing == 0) emulator::fail("more threads arrive at a barrier than it was set up for");
  --barrier.missing;
  barrier.proceed();
}

inline void barrier_expect(uint64_t *at, int bytes) {
  barrier_at(at).bytes += bytes;
  barrier_arrive(at);
}

inline void barrier_wait(uint64_t *at, uint32_t parity) {
  const Barrier &barrier = barrier_at(at);
  emulator::wait("barrier_wait", [&barrier, at, parity] {
    for (size_t i = 0; i < copies_of_boxes.size();) {
      if (copies_of_boxes[i].barrier == at) {
        const auto run = copies_of_boxes[i].run;
        copies_of_boxes.erase(copies_of_boxes.begin() + i);
        run();
      } else {
        ++i;
      }
    }
    return barrier.parity != parity;
  });
}

// Shared memory's 16-byte vectors in rows of 128 bytes are permuted by the number of the row.
inline uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

inline void load_box(void *to, const TensorMap &map, uint64_t *barrier, const std::vector<int> &from) {
  int rows = 1;
  for (int i = 1; i < map.rank; ++i) rows *= map.axes[i].box;
  const uint32_t start = emulator::shared_address(to);
  emulator::shared_pointer(start, rows * 128);
  if (start % 1024 || int(from.size()) != map.rank) emulator::fail("load_box: alignment or rank");
  const auto copy = [=, &map] {
    for (int row = 0; row < rows; ++row) {
      bool inside = true;
      int64_t offset = from[0];
      for (int i = 1, rest = row; i < map.rank; rest /= map.axes[i++].box) {
        const int at = from[i] + rest % map.axes[i].box;
        inside &= at >= 0 && at < map.axes[i].size;
        offset += at * map.axes[i].stride;
      }
      for (int k = 0; k < 64; ++k) {
        char *const cell = emulator::shared_pointer(swizzled(start + row * 128 + k * 2), 2);
        memset(cell, 0, 2);
        if (inside && from[0] + k < map.axes[0].size) memcpy(cell, map.base + 2 * (offset + k), 2);
      }
    }
    Barrier &counts = barrier_at(barrier);
    counts.bytes -= rows * 128;
    counts.proceed();
  };
  if (emulator::settings.copies_late)
    copies_of_boxes.push_back({barrier, copy});
  else
    copy();
}

inline void load_box(void *to, const TensorMap &map, uint64_t *barrier, int c0, int c1, int c2) {
  load_box(to, map, barrier, std::vector<int>{c0, c1, c2});
}
inline void load_box(void *to, const TensorMap &map, uint64_t *barrier, int c0, int c1, int c2, int c3) {
  load_box(to, map, barrier, std::vector<int>{c0, c1, c2, c3});
}

inline std::vector<std::function<void()>> stores_of_boxes;  // those that have not happened yet

inline void store_box(const void *from, const TensorMap &map, int c0, int c1, int c2) {
  ++emulator::boxes_stored;
  const int begin[3] = {c0, c1, c2};
  const auto &axes = map.axes;
  const int length = axes[0].box * axes[1].box * axes[2].box;
  const uint32_t start = emulator::shared_address(from);
  emulator::shared_pointer(start, 2 * length);
  if (start % 128 || map.rank != 3) emulator::fail("store_box: alignment or rank");
  const auto copy = [=, &map] {
    for (int cell = 0; cell < length; ++cell) {
      bool inside = true;
      int64_t offset = 0;
      for (int i = 0, rest = cell; i < 3; rest /= map.axes[i++].box) {
        const int64_t at = begin[i] + rest % map.axes[i].box;
        inside &= at < map.axes[i].size;
        offset += at * map.axes[i].stride;
      }
      if (inside) memcpy(const_cast<char *>(map.base) + 2 * offset, emulator::shared_pointer(start + 2 * cell, 2), 2);
    }
  };
  if (emulator::settings.copies_late)
    stores_of_boxes.push_back(copy);
  else
    copy();
}

inline void stores_wait() {
  for (const auto &store : stores_of_boxes) store();
  stores_of_boxes.clear();
}

inline void show_to_products() {}

inline void sync_threads(int id, int count) { emulator::sync(id, count); }

template <int COUNT>
void more_registers() {}
template <int COUNT>
void fewer_registers() {}

}  // namespace weit::cuda
