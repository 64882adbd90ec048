// What only benchmarks launch: the baseline, and two-shot with paced loads.
#include "enqueue.cuh"
#include "paced.cuh"
#include "row_per_block.cuh"

namespace token::weave::cuda {

void enqueue_row_per_block(const ReductionParams& params, Element, const LaunchShape& shape) {
    enqueue(row_per_block, params, shape);
}

void enqueue_two_shot_paced(const ReductionParams& params, Element, const LaunchShape& shape) {
    enqueue(two_shot<Paced, BFloat16, true>, params, shape);
}

}  // namespace token::weave::cuda
