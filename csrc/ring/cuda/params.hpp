// What the merge kernel is told, by value. No standard library: the kernel's source is also
// compiled where there is none.
#pragma once

#include "token/common/host_device.hpp"
#include "token/common/int_types.hpp"

namespace token::ring::cuda {

// In elements.
struct Strides {
    int64_t batch;
    int64_t row;
    int64_t head;
};

// Rows [row_start, row_stop) and heads [head_start, head_stop) of all batch entries; the pointers
// are of the first of these, as in ring::MergePiece.
struct PieceParams {
    const void* out;
    const float* lse;
    Strides out_strides;
    Strides lse_strides;
    int32_t dtype;  // DType
    int32_t row_start;
    int32_t row_stop;
    int32_t head_start;
    int32_t head_stop;
};

// A line is one head of one row of one batch entry. Lines count heads first, then rows, then batch
// entries; there are fewer than 2^31.
struct MergeTarget {
    void* out;           // [batch, rows, heads, head_dim]
    float* lse;          // [batch, rows, heads]
    const float* sinks;  // [heads]; may be null
    Strides out_strides;
    Strides lse_strides;
    int32_t out_dtype;  // DType
    int32_t first_row;  // the rows of this launch
    int32_t num_rows;
    int32_t heads;
    int32_t head_dim;
    int32_t num_lines;       // batch * num_rows * heads
    int32_t lanes_per_line;  // a power of two up to 32
    int32_t num_pieces;
    int32_t depth;  // at most so many pieces have the same row
};

template <int kMostPieces>
struct MergeKernelParams {
    MergeTarget target;
    PieceParams pieces[kMostPieces];
};

// Lines of a warp's tile, and elements that a lane holds of a line.
inline constexpr int kTileLines = 32;
inline constexpr int kLaneElements = 8;
inline constexpr int kMostWarps = 8;
// Pieces of one launch: two sizes of params, since those of most merges are small.
inline constexpr int kFewPieces = 16;
inline constexpr int kMostPieces = 256;
// Pieces that may have the same row: what fits in the shared memory of a block of one warp.
inline constexpr int kMostDepth = 160;

// Shared memory of one warp, in words: of each line its batch entry, row and head, what its sums
// start from, how many pieces count, and of each of these the number and the share.
TOKEN_HOST_DEVICE constexpr int scratch_words(int depth) {
    return (5 + 2 * depth) * kTileLines;
}

}  // namespace token::ring::cuda
