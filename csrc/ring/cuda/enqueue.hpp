// Between launch.cpp, which knows no CUDA, and merge_lse.cu, which has the kernels compiled in.
#pragma once

#include "params.hpp"

namespace token::ring::cuda {

struct LaunchShape {
    int num_blocks;
    int num_threads;   // of a block
    int shared_bytes;  // of a block
    void* stream;      // cudaStream_t
};

// Puts the kernel on the stream or throws SystemFailure with CUDA's reason. kCapacity is kFewPieces
// or kMostPieces. In a build without CUDA (enqueue_absent.cpp) it throws.
template <int kCapacity>
void enqueue_merge(const MergeKernelParams<kCapacity>& params,
                   bool is_vectorized,
                   const LaunchShape& shape);

}  // namespace token::ring::cuda
