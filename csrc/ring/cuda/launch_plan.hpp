// Which launches of the kernel make up a merge: addresses and shapes in, kernel parameters out. No
// CUDA here, so that the emulator runs what the GPU would.
#pragma once

#include "../merge_lse.hpp"
#include "params.hpp"

#include <vector>

namespace token::ring::cuda {

struct MergeLaunch {
    MergeTarget target;
    std::vector<PieceParams> pieces;  // those that have any of the launch's rows, in order
    bool is_vectorized;
    int num_warps;        // of a block
    int64_t most_blocks;  // that find work
    int shared_bytes;     // of a block
};

// Nothing for an empty result. Rows are divided among launches only where more than kMostPieces
// pieces or 2^31 lines would meet. InvalidArgument: see check_merge; or a row has more than
// kMostDepth pieces, or the shape is beyond 2^31 rows, heads or head_dim.
std::vector<MergeLaunch> plan_launches(const MergeParams& params);

}  // namespace token::ring::cuda
