// Between start.cpp, which knows no CUDA, and the .cu units, which are the only ones to have
// kernels compiled in. Each function puts one kernel on the stream or throws SystemFailure with
// CUDA's reason; of a build without CUDA (enqueue_absent.cpp) each throws.
#pragma once

#include "params.hpp"

namespace token::weave::cuda {

// The shape of every launch. Those of rows.cuh, which is device code: reduce_peer.cu holds them
// equal.
inline constexpr int kBlockThreads = 512;
inline constexpr int kWarpThreads = 32;
inline constexpr int kRowUnitElements = 8;  // that a lane holds side by side
inline constexpr int kRowUnitsPerLane = 4;

struct LaunchShape {
    int num_blocks;   // of each rank
    int num_ranks;    // virtual ranks in this launch, or 1
    int num_threads;  // of a block
    void* stream;     // cudaStream_t
};

// Virtual ranks wait for each other inside the launch: CUDA refuses what cannot be resident.
// Between GPUs nothing of the kind is needed, block b waits for block b of its peers only.
constexpr bool is_cooperative(const LaunchShape& shape) {
    return shape.num_ranks > 1;
}

void enqueue_two_shot_peer(const ReductionParams& params, Element dtype, const LaunchShape& shape);
// Rows of no whole units, element by element.
void enqueue_two_shot_unaligned(const ReductionParams& params,
                                Element dtype,
                                const LaunchShape& shape);
void enqueue_two_shot_multicast(const ReductionParams& params,
                                Element dtype,
                                const LaunchShape& shape);
void enqueue_one_shot_peer(const ReductionParams& params, Element dtype, const LaunchShape& shape);
void enqueue_one_shot_multicast(const ReductionParams& params,
                                Element dtype,
                                const LaunchShape& shape);
void enqueue_gather_peer(const GatherParams& params, bool is_aligned, const LaunchShape& shape);
// Whole vectors of 16 bytes only.
void enqueue_gather_multicast(const GatherParams& params,
                              bool is_aligned,
                              const LaunchShape& shape);
// Of benchmarks, bf16 only.
void enqueue_row_per_block(const ReductionParams& params, Element dtype, const LaunchShape& shape);
void enqueue_two_shot_paced(const ReductionParams& params, Element dtype, const LaunchShape& shape);

}  // namespace token::weave::cuda
