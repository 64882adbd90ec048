// The merge of partial attention outputs on the GPU, for callers without CUDA headers.
#pragma once

#include "../merge_lse.hpp"

namespace token::ring::cuda {

// What ring::merge_lse does, for pointers that the current device can reach: the same result, bit
// for bit but for lse (log is the device's) and the bits of a NaN.
//
// Enqueued on `stream` (a cudaStream_t; null is the legacy default stream), without a wait and
// without memory of its own; can be captured in a graph. num_blocks: the most thread blocks it may
// use; 0 for one warp a tile. InvalidArgument: see plan_launches; SystemFailure:
// the launch failed, with the reason.
void merge_lse(const MergeParams& params, void* stream, int num_blocks);

}  // namespace token::ring::cuda
