// The baseline of the benchmarks, in no other use.
#include "enqueue.cuh"
#include "row_per_block.cuh"

namespace token::weave::cuda {

void enqueue_row_per_block(const ReductionParams& params, Element, const LaunchShape& shape) {
    enqueue(row_per_block, params, shape);
}

}  // namespace token::weave::cuda
