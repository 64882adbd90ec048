// Between launch.cpp, which fills parameters, and the two ways to a kernel: compiled in
// (enqueue.hpp), or described to a launcher that compiles it when it is first needed. Knows each
// kernel by both its names.
#pragma once

#include "../../fabric/kernel_launch.hpp"
#include "enqueue.hpp"

#include <vector>

namespace token::weave::cuda {

enum class ReductionKernel {
    kTwoShotPeer,
    kTwoShotUnaligned,
    kTwoShotMulticast,
    kOneShotPeer,
    kOneShotMulticast,
    kRowPerBlock,
    kTwoShotPaced,
};

enum class GatherKernel { kPeer, kPeerUnaligned, kMulticast };

// Throws SystemFailure where CUDA refuses, or what the launcher throws.
void start(ReductionKernel kernel,
           Element dtype,
           const ReductionParams& params,
           const LaunchShape& shape,
           const fabric::KernelLauncher& launcher);
void start(GatherKernel kernel,
           const GatherParams& params,
           const LaunchShape& shape,
           const fabric::KernelLauncher& launcher);

// Every kernel that start() can ask a launcher for.
std::vector<fabric::KernelSource> kernel_sources();

}  // namespace token::weave::cuda
