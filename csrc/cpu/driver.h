// What the bindings call: one job on the kernels that fit this machine.
#pragma once

#include <string>
#include <vector>

#include "chain.h"

namespace weit {

// Parts of a sum over tokens when the result must not depend on the number of threads.
constexpr int64_t kFixedParts = 8;
// Bytes that the sums of all parts may take where these are more than a few; some of many cores then wait. Gradients of
// 2 MiB keep 64 busy.
constexpr int64_t kMostSums = 128 << 20, kFewParts = 4;

// Compute what the job's pointers ask for, and dT and dS (contiguous as T and S are) where they are not null.
//
// ATen's threads share the job. With `deterministic` the result does not depend on how many they are.
void run_chain(Job job, Element element, bool deterministic, void *dT, void *dS);

// Names of the instruction sets that this machine has kernels for, the best first; the one in use; and another one.
std::vector<std::string> instruction_sets();
std::string instruction_set();
void use_instruction_set(const std::string &name);

// Bytes that one core's block of tokens may take: five eighths of its own cache, the rest is for the templates that
// stream through it.
int64_t block_bytes();

}  // namespace weit
