// The merge of partial attention outputs (ring/merge_lse.hpp says what it computes) as one kernel
// that reads every partial once.
//
// Grid: as many blocks as the launch gives, each warp takes every (grid x warps)-th tile. Block: 1
// to 8 warps, which share nothing. A tile is 32 lines, a line one head of one row:
//
//     first   lane l owns line l: it reads lse of all pieces, and leaves in shared memory which
//             pieces count and the share of each; it writes the line's lse
//     then    lanes_per_line lanes own a line together, 8 elements each, four pieces in flight
//
// One __syncwarp each way. The sums are fp32 in the order of the pieces, with products and sums
// rounded one by one (compiled with --fmad=false): the bits of out are those of the CPU.
#pragma once

#include "../elements.hpp"
#include "params.hpp"
#include "token/ptx/convert.hpp"
#include "token/ptx/shared.hpp"
#include "token/ptx/vectors.hpp"

namespace token::ring::cuda {

// Values of DType.
inline constexpr int32_t kFloat32 = 0;
inline constexpr int32_t kBFloat16 = 1;

inline constexpr int kPiecesInFlight = 4;

TOKEN_DEVICE float empty_lse() {
    return bit_cast<float>(0xff800000u);  // -inf
}

// A warp's part of shared memory. Only pieces that count are there: those that have the line, and
// whose row saw a key.
struct Scratch {
    int32_t* batch;
    int32_t* row;
    int32_t* head;
    float* start;    // 0, or NaN for a line that is NaN whatever the pieces hold
    int32_t* count;  // of pieces
    int32_t* index;  // [depth, kTileLines], of the piece
    float* share;    // [depth, kTileLines]
};

TOKEN_DEVICE Scratch scratch_of_warp(int warp, int depth) {
    float* words = static_cast<float*>(ptx::dynamic_shared()) + warp * scratch_words(depth);
    auto* integers = reinterpret_cast<int32_t*>(words);
    return {integers,
            integers + kTileLines,
            integers + 2 * kTileLines,
            words + 3 * kTileLines,
            integers + 4 * kTileLines,
            integers + 5 * kTileLines,
            words + (5 + depth) * kTileLines};
}

TOKEN_DEVICE bool has_line(const PieceParams& piece, int32_t row, int32_t head) {
    return piece.row_start <= row && row < piece.row_stop && piece.head_start <= head &&
           head < piece.head_stop;
}

TOKEN_DEVICE int64_t place_of(const Strides& strides, int32_t batch, int32_t row, int32_t head) {
    return batch * strides.batch + row * strides.row + head * strides.head;
}

TOKEN_DEVICE float load_float(const float* from) {
    return bit_cast<float>(ptx::ld_global_nc_4B(from));
}

// One lane, one line.
TOKEN_DEVICE void weigh_line(const MergeTarget& target,
                             const PieceParams* pieces,
                             const Scratch& scratch,
                             int lane,
                             int32_t line) {
    const int32_t head = line % target.heads;
    const int32_t row = target.first_row + line / target.heads % target.num_rows;
    const int32_t batch = line / target.heads / target.num_rows;
    scratch.batch[lane] = batch;
    scratch.row[lane] = row;
    scratch.head[lane] = head;

    const float sink = target.sinks == nullptr ? empty_lse() : load_float(target.sinks + head);
    float highest = sink;
    int count = 0;
    for (int index = 0; index < target.num_pieces; ++index) {
        const PieceParams& piece = pieces[index];
        if (!has_line(piece, row, head)) {
            continue;
        }
        const float own = load_float(
            piece.lse +
            place_of(piece.lse_strides, batch, row - piece.row_start, head - piece.head_start));
        if (own == empty_lse()) {
            continue;
        }
        scratch.index[count * kTileLines + lane] = index;
        scratch.share[count * kTileLines + lane] = own;
        ++count;
        const bool is_higher = own > highest || own != own;  // NaN stays the highest
        highest = is_higher ? own : highest;
    }
    float total = sink == empty_lse() ? 0.0f : exp_nonpositive(sink - highest);
    for (int i = 0; i < count; ++i) {
        float& share = scratch.share[i * kTileLines + lane];
        share = exp_nonpositive(share - highest);
        total += share;
    }
    for (int i = 0; i < count; ++i) {
        scratch.share[i * kTileLines + lane] /= total;
    }
    scratch.count[lane] = count;
    scratch.start[lane] = 0.0f * total;
    // -inf + log(0) is -inf.
    const float lse = highest + logf(total);
    ptx::st_global_4B(target.lse + place_of(target.lse_strides, batch, row, head),
                      bit_cast<uint32_t>(lse));
}

// What a lane reads of one piece: 8 elements of 2 or 4 bytes.
struct Loaded {
    ptx::Vec16B part[2];
};

TOKEN_DEVICE ptx::FloatPair widen_pair(int32_t dtype, uint32_t packed) {
    return dtype == kBFloat16 ? ptx::f32x2_from_bf16x2(packed) : ptx::f32x2_from_f16x2(packed);
}

TOKEN_DEVICE uint32_t narrow_pair(int32_t dtype, float low, float high) {
    return dtype == kBFloat16 ? ptx::bf16x2_from_f32x2_rn(low, high)
                              : ptx::f16x2_from_f32x2_rn(low, high);
}

TOKEN_DEVICE Loaded load_vectors(const void* out, int32_t dtype, int64_t at) {
    Loaded loaded;
    if (dtype == kFloat32) {
        loaded.part[0] = ptx::ld_global_nc_16B(static_cast<const float*>(out) + at);
        loaded.part[1] = ptx::ld_global_nc_16B(static_cast<const float*>(out) + at + 4);
    } else {
        loaded.part[0] = ptx::ld_global_nc_16B(static_cast<const uint16_t*>(out) + at);
    }
    return loaded;
}

// One by one: `count` of the lane's elements exist.
TOKEN_DEVICE Loaded load_elements(const void* out, int32_t dtype, int64_t at, int count) {
    Loaded loaded{};
    for (int i = 0; i < kLaneElements; ++i) {
        if (i >= count) {
            continue;
        }
        if (dtype == kFloat32) {
            loaded.part[i / 4].word[i % 4] =
                ptx::ld_global_nc_4B(static_cast<const float*>(out) + at + i);
        } else {
            const uint32_t bits = ptx::ld_global_nc_2B(static_cast<const uint16_t*>(out) + at + i);
            loaded.part[0].word[i / 2] |= i % 2 == 0 ? bits : bits << 16;
        }
    }
    return loaded;
}

TOKEN_DEVICE void add_scaled(float* sums, float share, int32_t dtype, const Loaded& loaded) {
    if (dtype == kFloat32) {
        for (int i = 0; i < kLaneElements; ++i) {
            sums[i] += share * bit_cast<float>(loaded.part[i / 4].word[i % 4]);
        }
        return;
    }
    for (int i = 0; i < kLaneElements / 2; ++i) {
        const ptx::FloatPair pair = widen_pair(dtype, loaded.part[0].word[i]);
        sums[2 * i] += share * pair.low;
        sums[2 * i + 1] += share * pair.high;
    }
}

TOKEN_DEVICE void store_vectors(void* out, int32_t dtype, int64_t at, const float* sums) {
    ptx::Vec16B part;
    if (dtype != kFloat32) {
        for (int i = 0; i < 4; ++i) {
            part.word[i] = narrow_pair(dtype, sums[2 * i], sums[2 * i + 1]);
        }
        ptx::st_global_16B(static_cast<uint16_t*>(out) + at, part);
        return;
    }
    for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 4; ++i) {
            part.word[i] = bit_cast<uint32_t>(sums[4 * half + i]);
        }
        ptx::st_global_16B(static_cast<float*>(out) + at + 4 * half, part);
    }
}

TOKEN_DEVICE void store_elements(
    void* out, int32_t dtype, int64_t at, const float* sums, int count) {
    for (int i = 0; i < kLaneElements; ++i) {
        if (i >= count) {
            continue;
        }
        if (dtype == kFloat32) {
            ptx::st_global_4B(static_cast<float*>(out) + at + i, bit_cast<uint32_t>(sums[i]));
        } else {
            ptx::st_global_2B(static_cast<uint16_t*>(out) + at + i,
                              static_cast<uint16_t>(narrow_pair(dtype, sums[i], 0.0f)));
        }
    }
}

// The elements [start, start + 8) of one line, of which `count` exist.
template <bool kVectorized>
TOKEN_DEVICE void merge_elements(const MergeTarget& target,
                                 const PieceParams* pieces,
                                 const Scratch& scratch,
                                 int slot,
                                 int start,
                                 int count) {
    const int32_t batch = scratch.batch[slot], row = scratch.row[slot], head = scratch.head[slot];
    const int num_pieces = scratch.count[slot];
    float sums[kLaneElements];
    for (int i = 0; i < kLaneElements; ++i) {
        sums[i] = scratch.start[slot];
    }
    for (int first = 0; first < num_pieces; first += kPiecesInFlight) {
        Loaded loaded[kPiecesInFlight];
        int index[kPiecesInFlight];
#pragma unroll
        for (int i = 0; i < kPiecesInFlight; ++i) {
            if (first + i < num_pieces) {
                index[i] = scratch.index[(first + i) * kTileLines + slot];
                const PieceParams& piece = pieces[index[i]];
                const int64_t at = place_of(
                    piece.out_strides, batch, row - piece.row_start, head - piece.head_start);
                if constexpr (kVectorized) {
                    loaded[i] = load_vectors(piece.out, piece.dtype, at + start);
                } else {
                    loaded[i] = load_elements(piece.out, piece.dtype, at + start, count);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < kPiecesInFlight; ++i) {
            if (first + i < num_pieces) {
                const float share = scratch.share[(first + i) * kTileLines + slot];
                add_scaled(sums, share, pieces[index[i]].dtype, loaded[i]);
            }
        }
    }
    const int64_t at = place_of(target.out_strides, batch, row, head);
    if constexpr (kVectorized) {
        store_vectors(target.out, target.out_dtype, at + start, sums);
    } else {
        store_elements(target.out, target.out_dtype, at + start, sums, count);
    }
}

// kVectorized: head_dim and all strides are multiples of 8, all pointers of 16 bytes.
template <bool kVectorized, int kCapacity>
__global__ void __launch_bounds__(kMostWarps * 32)
    merge_lse_kernel(const __grid_constant__ MergeKernelParams<kCapacity> params) {
    const MergeTarget& target = params.target;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int num_warps = static_cast<int>(blockDim.x) / 32;
    const Scratch scratch = scratch_of_warp(warp, target.depth);
    const int lanes = target.lanes_per_line, lines_at_once = 32 / lanes;
    const int64_t step = int64_t{kTileLines} * static_cast<int>(gridDim.x) * num_warps;
    int64_t first = int64_t{kTileLines} * (static_cast<int>(blockIdx.x) * num_warps + warp);
    for (; first < target.num_lines; first += step) {
        const int64_t left = target.num_lines - first;
        const int num_lines = left < kTileLines ? static_cast<int>(left) : kTileLines;
        if (lane < num_lines) {
            weigh_line(target, params.pieces, scratch, lane, static_cast<int32_t>(first) + lane);
        }
        // What the lanes of a line read below, the lane that weighed it has written.
        __syncwarp();
        for (int slot = lane / lanes; slot < num_lines; slot += lines_at_once) {
            for (int start = lane % lanes * kLaneElements; start < target.head_dim;
                 start += lanes * kLaneElements) {
                const int rest = target.head_dim - start;
                const int count = rest < kLaneElements ? rest : kLaneElements;
                merge_elements<kVectorized>(target, params.pieces, scratch, slot, start, count);
            }
        }
        // The next tile overwrites what this one has read.
        __syncwarp();
    }
}

}  // namespace token::ring::cuda
