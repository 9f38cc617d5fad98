#include "driver.h"

#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace weit {
namespace {

// Multiply-adds below which waking another core costs more than it brings (about 10 us of one core).
constexpr int64_t kLeastWork = 400'000;
// What a thread keeps for later calls, at the most: more memory would cost others more than it saves in page faults.
constexpr int64_t kMostKept = 64 << 20;

// Memory that grows to the largest call of its thread and stays, unless it is very large: a fresh allocation of some MiB
// costs page faults. It is torch's, so that its profiler counts it and its error says what was asked for.
class Buffer {
 public:
  void *get(int64_t size) {
    if (size > size_) {
      memory_.clear();
      size_ = 0;
      memory_ = c10::GetCPUAllocator()->allocate(size);
      size_ = size;
    }
    return memory_.get();
  }

  void trim() {
    if (size_ > kMostKept) memory_.clear(), size_ = 0;
  }

 private:
  c10::DataPtr memory_;
  int64_t size_ = 0;
};

struct InstructionSet {
  const char *name;
  const Kernels &(*kernels)(const Job &, Element);
};

#ifdef __x86_64__
// Hardware that multiplies pairs of rows wants them side by side, which a window's dT cannot give at every offset of
// tokens with an odd number of rows: there bfloat16 is widened.
const Kernels &with_bf16(const Job &job, Element element) {
  const bool apart = job.windowed && job.dT && job.n % 2;
  return element == kBFloat16 && !apart ? avx512_bf16_kernels(job) : avx512_kernels(job, element);
}
#endif

std::vector<InstructionSet> supported() {
  std::vector<InstructionSet> sets;
#ifdef __x86_64__
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) sets.push_back({"avx512_bf16", with_bf16});
  if (avx512) sets.push_back({"avx512", avx512_kernels});
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets.push_back({"avx2", avx2_kernels});
#endif
  sets.push_back({"generic", generic_kernels});
  return sets;
}

const std::vector<InstructionSet> &all_sets() {
  static const std::vector<InstructionSet> sets = supported();
  return sets;
}

const InstructionSet *&in_use() {
  static const InstructionSet *set = &all_sets().front();
  return set;
}

// Units of so many tokens that one block takes at the most.
int64_t most_units(const Job &job, const Kernels &kernels, int64_t unit) {
  constexpr int64_t kMany = 64;
  const int64_t fixed = kernels.block_size(job, unit);
  const int64_t more = ceil_div(kernels.block_size(job, (kMany + 1) * unit) - fixed, kMany);
  return 1 + std::max<int64_t>(0, block_bytes() - fixed) / more;
}

struct Range {
  int64_t begin, end;
};

Range share(int64_t count, int64_t parts, int64_t part) { return {count * part / parts, count * (part + 1) / parts}; }

template <class F>
void parallel(int64_t count, const F &f) {
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

}  // namespace

int64_t block_bytes() {
  static const int64_t bytes = [] {
#ifdef _SC_LEVEL2_CACHE_SIZE
    const int64_t cache = sysconf(_SC_LEVEL2_CACHE_SIZE);  // 0 or less where the system does not say
#else
    const int64_t cache = 0;
#endif
    return std::clamp<int64_t>(cache > 0 ? cache : 1 << 20, 256 << 10, 2 << 20) * 5 / 8;
  }();
  return bytes;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet &set : all_sets()) names.emplace_back(set.name);
  return names;
}

std::string instruction_set() { return in_use()->name; }

void use_instruction_set(const std::string &name) {
  for (const InstructionSet &set : all_sets()) {
    if (name == set.name) {
      in_use() = &set;
      return;
    }
  }
  TORCH_CHECK_VALUE(false, "instruction set must be one that this machine has, got ", name);
}

void run_chain(Job job, Element element, bool deterministic, void *dT, void *dS) {
  thread_local Buffer packed, factors, sums;
  job.dT = dT != nullptr, job.dS = dS != nullptr;
  const Kernels &kernels = in_use()->kernels(job, element);
  const int64_t a_panels = ceil_div(job.p, kernels.width), k_panels = ceil_div(job.q, kernels.width);
  const int64_t count = matrices(job);
  const bool reads_Z = job.y || job.dS, sums_up = job.dT || job.dS;

  // Blocks: as many units of tokens as fit, the templates packed elsewhere.
  job.packed_Z = reads_Z ? &job : nullptr;
  job.packed_dx = job.dx ? &job : nullptr;
  const int64_t unit = kernels.unit(job), units = ceil_div(job.M, unit);
  const int64_t most = most_units(job, kernels, unit);

  const int64_t products = (reads_Z ? 1 : 0) + (job.dx ? 1 : 0) + (job.dT ? 1 : 0);
  const int64_t work = job.M * job.n * job.q * count * job.p * std::max<int64_t>(1, products);
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), std::max<int64_t>(1, work / kLeastWork));
  // Few tokens: cores share out the result's columns. If tokens are rows, each packs the templates that it needs where
  // it needs them.
  const int64_t panels = job.y ? a_panels : k_panels;
  const bool few = units <= most && panels >= std::min(threads, units);
  const bool by_columns = few && !sums_up && !job.windowed;
  int64_t parts = std::min(threads, units);
  if (by_columns) parts = std::min(threads, panels);
  if (sums_up && deterministic) parts = std::min(kFixedParts, units);
  const int64_t dT_size = job.dT ? a_panels * count * job.q * kernels.width * kernels.sum_size : 0;
  const int64_t dS_size = job.dS ? job.m * job.N * job.n * kernels.sum_size : 0;
  if (sums_up) parts = std::min(parts, std::max(kFewParts, kMostSums / (dT_size + dS_size)));
  const int64_t longest = by_columns ? units : ceil_div(units, parts);
  const int64_t whole = job.windowed ? std::min(longest, job.near.height) : longest;
  job.block = ceil_div(whole, ceil_div(whole, most)) * unit;

  const int64_t S_size = ceil_div(job.N * (job.m + 1) * (job.n + 1) * kernels.sum_size, 64) * 64;  // pairs round up
  char *room = static_cast<char *>(factors.get(2 * S_size + job.N * job.n * int64_t(sizeof(int64_t))));
  job.S_mix = job.y ? room : nullptr;
  job.S_unmix = job.dx || job.dT ? room + S_size : nullptr;
  job.rows = reinterpret_cast<int64_t *>(room + 2 * S_size);
  kernels.pack_S(job);

  if (by_columns && unit == 1) {
    job.packed_Z = job.packed_dx = nullptr;
  } else {
    const int64_t Z_size = reads_Z ? ceil_div(kernels.packed_Z_size(job), 64) * 64 : 0;
    char *templates = static_cast<char *>(packed.get(Z_size + (job.dx ? kernels.packed_dx_size(job) : 0)));
    job.packed_Z = reads_Z ? templates : nullptr;
    job.packed_dx = job.dx ? templates + Z_size : nullptr;
    if (reads_Z || job.dx) parallel(count * a_panels, [&](int64_t i) { kernels.pack_T(job, i % count, i / count); });
  }

  char *dT_sums = static_cast<char *>(sums.get(parts * (dT_size + dS_size)));
  char *dS_sums = dT_sums + parts * dT_size;
  parallel(parts, [&](int64_t i) {
    thread_local Buffer scratch;
    Part part{0, job.M, 0, a_panels, 0, k_panels, dT_sums + i * dT_size, dS_sums + i * dS_size, nullptr};
    if (by_columns && job.y) {
      part.a0 = share(a_panels, parts, i).begin, part.a1 = share(a_panels, parts, i).end;
    } else if (by_columns) {
      part.k0 = share(k_panels, parts, i).begin, part.k1 = share(k_panels, parts, i).end;
    } else {
      part.b0 = share(units, parts, i).begin * unit;
      part.b1 = std::min(share(units, parts, i).end * unit, job.M);
    }
    if (dT_size) std::memset(part.dT, 0, dT_size);
    if (dS_size) std::memset(part.dS, 0, dS_size);
    part.scratch = scratch.get(kernels.block_size(job, job.block));
    kernels.run(job, part);
    scratch.trim();
  });
  if (dT) {
    parallel(count * a_panels, [&](int64_t i) {
      kernels.finish_dT(job, dT_sums, parts, i % count, i / count, dT);
    });
  }
  if (dS) kernels.finish_dS(job, dS_sums, parts, dS);
  for (Buffer *buffer : {&packed, &factors, &sums}) buffer->trim();
}

}  // namespace weit
