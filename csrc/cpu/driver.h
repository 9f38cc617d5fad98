// What the bindings call: one job on the kernels that fit this machine.
#pragma once

#include <string>
#include <vector>

#include "chain.h"

namespace weit {

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
