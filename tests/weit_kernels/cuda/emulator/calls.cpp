// What Python calls. The kernels' functions are weak here: a library need not hold all of them.
#include "../../../../csrc/cuda/kernels.h"

namespace weit::cuda {
#define WEAK __attribute__((weak))
WEAK cudaError_t few_rows(const Chain &, cudaStream_t);
WEAK cudaError_t templates_first(const Chain &, cudaStream_t);
WEAK Splits weight_grads_splits(const WeightGrads &);
WEAK cudaError_t weight_grads(const WeightGrads &, cudaStream_t);
}  // namespace weit::cuda

using namespace weit::cuda;

extern "C" {
int emulated_few_rows(const Chain &job) { return few_rows(job, nullptr); }
int emulated_templates_first(const Chain &job) { return templates_first(job, nullptr); }
Splits emulated_weight_grads_splits(const WeightGrads &job) { return weight_grads_splits(job); }
int emulated_weight_grads(const WeightGrads &job) { return weight_grads(job, nullptr); }
}
