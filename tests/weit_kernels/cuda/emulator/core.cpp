#include "core.h"

#include <setjmp.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <random>
#include <utility>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {

Settings settings;
int boxes_stored = 0;
Fiber *current = nullptr;

namespace {

constexpr int kStackBytes = 1 << 18, kMostShared = 227 << 10, kMargin = 64 << 10;
constexpr char kUnwritten = char(0xff);  // a NaN in every floating type

// A fiber with its stack. Its first turn enters by setcontext; later ones by longjmp, which leaves signals alone and
// so costs no system call.
struct Thread : Fiber {
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  ucontext_t context;
  jmp_buf state;
  bool started = false, finished = false;
};

std::vector<std::unique_ptr<Thread>> threads;
std::vector<Group> warps, barriers;
const std::function<void()> *body;
jmp_buf scheduler;
std::string message;
int shared_size;
alignas(1024) char shared[kMargin + kMostShared + kMargin];

void enter() {
  for (;;) {  // a fiber serves block after block
    (*body)();
    static_cast<Thread *>(current)->finished = true;
    yield();
  }
}

void resume(Thread &thread) {
  current = &thread;
  const unsigned index = thread.index;
  threadIdx = {index % blockDim.x, index / blockDim.x % blockDim.y, index / (blockDim.x * blockDim.y)};
  if (_setjmp(scheduler)) return;
  if (thread.started) _longjmp(thread.state, 1);
  thread.started = true;
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack.get();
  thread.context.uc_stack.ss_size = kStackBytes;
  thread.context.uc_link = nullptr;
  makecontext(&thread.context, enter, 0);
  setcontext(&thread.context);
}

std::vector<int> in_order(int count) {
  std::vector<int> order(count);
  for (int i = 0; i < count; ++i) order[i] = settings.order == 1 ? count - 1 - i : i;
  if (settings.order > 1) std::shuffle(order.begin(), order.end(), std::mt19937(settings.order));
  return order;
}

std::string where() {
  const auto triple = [](auto v) {
    return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
  };
  return " in block " + triple(blockIdx) + ", thread " + triple(threadIdx);
}

bool untouched(const char *from, const char *to) {
  return std::all_of(from, to, [](char byte) { return byte == kUnwritten; });
}

void run_block(const std::vector<int> &order) {
  memset(shared, kUnwritten, sizeof(shared));
  for (auto *groups : {&warps, &barriers}) std::fill(groups->begin(), groups->end(), Group{});
  for (const int i : order) {
    threads[i]->finished = false, threads[i]->ready = nullptr;
    threads[i]->copies = {{}}, threads[i]->products = nullptr;
  }
  int left = int(order.size());
  while (left && message.empty()) {
    bool moved = false;
    for (const int i : order) {
      Thread &thread = *threads[i];
      if (thread.finished || (thread.ready && !thread.ready(thread.condition))) continue;
      thread.ready = nullptr, moved = true;
      resume(thread);
      left -= thread.finished;
      if (!message.empty()) return;
    }
    if (moved) continue;
    for (const int i : order)
      if (!threads[i]->finished) {
        threadIdx = {unsigned(i), 0, 0};
        message = std::string("waits for ever at ") + threads[i]->what + where();
        return;
      }
  }
  if (!untouched(shared, shared + kMargin) || !untouched(shared + kMargin + shared_size, shared + sizeof(shared)))
    message = "shared memory was written outside the " + std::to_string(shared_size) + " bytes asked for" + where();
}

}  // namespace

void yield() {
  if (!_setjmp(static_cast<Thread *>(current)->state)) _longjmp(scheduler, 1);
}

void fail(const std::string &text) {
  if (message.empty()) message = text + where();
  for (;;) yield();
}

Group &warp() { return warps[current->index / 32]; }
Group &named_barrier(int id) {
  if (id < 0 || id > 15) fail("there is no barrier " + std::to_string(id));
  return barriers[id];
}

void arrive(int id, int count) {
  Group &group = named_barrier(id);
  if (count % 32 || count < 32) fail("a barrier takes whole warps, not " + std::to_string(count) + " threads");
  if (group.arrived && group.size != count) fail("threads disagree on how many meet at a barrier");
  group.size = count;
  if (++group.arrived == count) group.arrived = 0, ++group.turn;
}

void sync(int id, int count) {
  Group &group = named_barrier(id);
  const uint64_t turn = group.turn;
  arrive(id, count);
  wait("a barrier", [&group, turn] { return group.turn != turn; });
}

char *shared_memory() { return shared + kMargin; }

uint32_t shared_address(const void *pointer) { return uint32_t(static_cast<const char *>(pointer) - shared_memory()); }

char *shared_pointer(uint32_t address, int bytes) {
  if (int64_t(address) + bytes > shared_size) fail("address " + std::to_string(address) + " is not in shared memory");
  return shared_memory() + address;
}

bool run(const std::function<void()> &kernel, dim3 grid, dim3 block, int shared_bytes) {
  const int count = int(block.x * block.y * block.z), blocks = int(grid.x * grid.y * grid.z);
  const int most_shared = settings.major == 8 ? 163 << 10 : settings.major == 12 ? 99 << 10 : kMostShared;
  message.clear();
  if (count < 32 || count > 1024 || count % 32 || blocks < 1 || shared_bytes > most_shared) {
    message = "no device launches " + std::to_string(blocks) + " blocks of " + std::to_string(count) +
              " threads with " + std::to_string(shared_bytes) + " bytes of shared memory";
    return false;
  }
  body = &kernel, gridDim = grid, blockDim = block, shared_size = shared_bytes;
  warps.resize(32), barriers.resize(16);
  while (int(threads.size()) < count) {
    threads.push_back(std::make_unique<Thread>());
    threads.back()->index = int(threads.size()) - 1;
  }
  const auto order = in_order(count);
  for (const int b : in_order(blocks)) {
    blockIdx = {b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)};
    run_block(order);
    if (!message.empty()) {
      threads.clear();  // fibers that were given up cannot serve another block
      return false;
    }
  }
  return true;
}

const std::string &error() { return message; }

}  // namespace emulator

extern "C" {
void emulator_set(int processors, int major, int minor, int order, int copies_late) {
  emulator::settings = {processors, major, minor, order, bool(copies_late)};
}
int emulator_boxes_stored() { return std::exchange(emulator::boxes_stored, 0); }
const char *emulator_error() { return emulator::error().c_str(); }
}
