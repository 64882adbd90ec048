// Which rows a rank owns, which of them a row group of a block takes, and which elements of a row a
// lane holds.
#pragma once

#include "params.hpp"
#include "token/common/host_device.hpp"
#include "token/ptx/opaque.hpp"

namespace token::weave::cuda {

struct RowSpan {
    int64_t start;
    int64_t stop;
};

// The rule of token::split_rows, which device code cannot include (reduce_peer.cu holds them
// equal).
TOKEN_HOST_DEVICE constexpr RowSpan split_span(int64_t num_rows, int64_t parts, int64_t index) {
    const int64_t base = num_rows / parts, larger = num_rows % parts;
    const int64_t start = index * base + (index < larger ? index : larger);
    return {start, start + base + (index < larger ? 1 : 0)};
}

inline constexpr int kUnitElements = 8;  // of a row that a lane holds side by side
inline constexpr int kUnitsPerLane = 4;
inline constexpr int kWarpLanes = 32;
inline constexpr int kMaxWarps = 16;  // of a block
inline constexpr int kMaxThreads = kMaxWarps * kWarpLanes;

// The warps of a block in groups of warps_per_row: each group works on a row of its own. The shape
// depends on `hidden` alone, so the bits of a row do not depend on how many rows there are.
struct RowGroup {
    int warps;       // of a group
    int num_groups;  // of the block
    int index;       // of this thread's group
    int warp;        // of this thread, within its group
    int lane;

    TOKEN_DEVICE explicit RowGroup(int warps_per_row)
        : warps(warps_per_row),
          num_groups(static_cast<int>(blockDim.x) / kWarpLanes / warps_per_row),
          index(static_cast<int>(threadIdx.x) / kWarpLanes / warps_per_row),
          warp(static_cast<int>(threadIdx.x) / kWarpLanes % warps_per_row),
          lane(static_cast<int>(threadIdx.x) % kWarpLanes) {}

    // Rows of a span are dealt to the groups of all blocks in turn. The span of an owner is dealt
    // the same way on every rank: block b knows which rows block b of the owner writes.
    TOKEN_DEVICE int64_t first_row(const RowSpan& span) const {
        return span.start + static_cast<int64_t>(blockIdx.x) * num_groups + index;
    }
    TOKEN_DEVICE int64_t row_step() const { return static_cast<int64_t>(gridDim.x) * num_groups; }
};

// The units of a row that this lane holds. Neighbouring lanes hold neighbouring units, so a half
// warp holds 128 elements in a row: a group of fp8 scales.
struct LaneUnits {
    int64_t hidden;
    int vectors;
    int first;
    int stride;

    TOKEN_DEVICE LaneUnits(const ReductionParams& params, const RowGroup& group)
        : hidden(params.hidden),
          vectors(params.vectors),
          first(group.warp * kWarpLanes + group.lane),
          stride(group.warps * kWarpLanes) {}

    // Addresses are made anew in each part of the work on a row: there would be dozens to keep.
    TOKEN_DEVICE void begin_part() { first = ptx::opaque(first); }

    TOKEN_DEVICE int unit(int index) const { return first + index * stride; }

    // Elements of the unit that exist. kIsAligned: hidden is a multiple of a unit.
    template <bool kIsAligned>
    TOKEN_DEVICE int count(int index) const {
        if (kIsAligned) {
            return unit(index) < vectors ? kUnitElements : 0;
        }
        const int64_t left = hidden - static_cast<int64_t>(unit(index)) * kUnitElements;
        return left < 0 ? 0 : left < kUnitElements ? static_cast<int>(left) : kUnitElements;
    }
};

}  // namespace token::weave::cuda
