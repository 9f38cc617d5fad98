// A block of CUDA threads on one thread of a CPU, for tests: each thread is a fiber, and fibers take turns.
//
// Shared memory holds NaN before each block, so that reading what nobody wrote shows. A wait that can never end is
// reported, not suffered. The order of blocks and threads is the test's choice, and so is whether asynchronous copies
// arrive at once or at the last moment: a kernel must be right under all of them.
#pragma once

#include <stdint.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "vectors.h"

namespace emulator {

struct Settings {
  int processors = 4, major = 9, minor = 0;
  int order = 0;             // of blocks and of threads: 0 ascending, 1 descending, others shuffled by this seed
  bool copies_late = false;  // asynchronous copies arrive when they are waited for, not when they are asked for
};
extern Settings settings;
extern int boxes_stored;  // since somebody asked

struct Fiber {
  int index = 0;                                  // in the block
  bool (*ready)(const void *condition) = nullptr;  // what it waits for; null: nothing
  const void *condition = nullptr;
  const char *what = "";
  std::vector<std::vector<std::function<void()>>> copies{1};  // groups of asynchronous copies, the last one open
  std::shared_ptr<void> products;  // of its warpgroup, which are not complete: what wgmma.h makes of it
};
extern Fiber *current;

// Threads that act together: a warp, or all that meet at a barrier.
struct Group {
  int arrived = 0, size = 0;
  uint64_t turn = 0;
  const char *what = "";
  void *calls[32] = {};
};

Group &warp();                 // the current thread's
Group &named_barrier(int id);  // 0 to 15; 0 is __syncthreads'

[[noreturn]] void fail(const std::string &message);  // ends the launch with an error
void yield();                                        // lets the other fibers run; for fibers that wait

// Waits until ready() holds. Others see to that; if nobody can, the launch ends with an error that says `what`.
template <class Ready>
void wait(const char *what, const Ready &ready) {
  if (ready()) return;
  current->ready = [](const void *condition) { return (*static_cast<const Ready *>(condition))(); };
  current->condition = &ready;
  current->what = what;
  yield();
}

// Every thread of a group, `size` of them, passes its own `call`; the last to arrive runs act(calls) with a pointer to
// each thread's, in their order. All return after that.
template <class Call, class Act>
void together(Group &group, int size, const char *what, Call &call, const Act &act) {
  if (group.arrived && group.what != what)
    fail(std::string("threads of one group are at ") + group.what + " and at " + what);
  group.what = what;
  group.calls[current->index % size] = &call;
  if (++group.arrived == size) {
    group.arrived = 0, ++group.turn;
    act(reinterpret_cast<Call *const *>(group.calls));
  } else {
    wait(what, [&group, turn = group.turn] { return group.turn != turn; });
  }
}

void arrive(int id, int threads);  // bar.arrive
void sync(int id, int threads);    // bar.sync

char *shared_memory();                         // the block's, from 0
uint32_t shared_address(const void *pointer);  // 32 bits, as in PTX
char *shared_pointer(uint32_t address, int bytes);  // fails outside what the launch asked for

// Runs all blocks. False where the sizes are none that a device takes, or after an error(), which says more.
bool run(const std::function<void()> &kernel, dim3 grid, dim3 block, int shared_bytes);
const std::string &error();

}  // namespace emulator
