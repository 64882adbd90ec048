// The merge of partial attention outputs on the GPU, for callers without CUDA headers.
#pragma once

#include "../../fabric/kernel_launch.hpp"
#include "../merge_lse.hpp"

#include <vector>

namespace token::ring::cuda {

// What ring::merge_lse does, for pointers that the current device can reach: the same result, bit
// for bit but for lse (log is the device's) and the bits of a NaN.
//
// Enqueued on `stream` (a cudaStream_t; null is the legacy default stream), without a wait and
// without memory of its own; can be captured in a graph. num_blocks: the most thread blocks it may
// use; 0 for one warp a tile. `launcher`: who brings the kernels; empty for those compiled in.
// InvalidArgument: see plan_launches; SystemFailure: the launch failed, with the reason.
void merge_lse(const MergeParams& params,
               void* stream,
               int num_blocks,
               const fabric::KernelLauncher& launcher = {});

// Every kernel that a launcher can be asked for.
std::vector<fabric::KernelSource> kernel_sources();

}  // namespace token::ring::cuda
