// One number from all lanes of a row group: sums and largest magnitudes, in one fixed order.
#pragma once

#include "rows.cuh"
#include "token/common/host_device.hpp"
#include "token/ptx/barrier.hpp"

namespace token::weave::cuda {

inline constexpr uint32_t kAllLanes = 0xffffffffu;

struct TotalShared {
    uint32_t of_warp[2][kMaxWarps];
};

// One barrier of the group for each total. The partial totals of consecutive totals lie in two
// places by turns: a warp that is one total ahead writes the place that nobody reads any more,
// since it passed the barrier after which the others read the first one only when all of them had
// done so with the second.
class RowTotal {
  public:
    TOKEN_DEVICE RowTotal(const RowGroup& group, TotalShared& shared)
        : group_(group), shared_(shared) {}

    TOKEN_DEVICE float sum(float value) {
#pragma unroll
        for (int distance = kWarpLanes / 2; distance > 0; distance /= 2) {
            value += __shfl_xor_sync(kAllLanes, value, distance);
        }
        if (group_.warps == 1) {
            return value;
        }
        const uint32_t* partial = exchange(__float_as_uint(value));
        float total = __uint_as_float(partial[0]);
#pragma unroll 1
        for (int warp = 1; warp < group_.warps; ++warp) {
            total += __uint_as_float(partial[warp]);
        }
        return total;
    }

    // Of magnitudes as bits, which are ordered as the numbers are, NaN above all.
    TOKEN_DEVICE uint32_t largest(uint32_t value) {
#pragma unroll
        for (int distance = kWarpLanes / 2; distance > 0; distance /= 2) {
            value = larger(value, __shfl_xor_sync(kAllLanes, value, distance));
        }
        if (group_.warps == 1) {
            return value;
        }
        const uint32_t* partial = exchange(value);
        uint32_t total = partial[0];
#pragma unroll 1
        for (int warp = 1; warp < group_.warps; ++warp) {
            total = larger(total, partial[warp]);
        }
        return total;
    }

    TOKEN_DEVICE static uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

  private:
    TOKEN_DEVICE const uint32_t* exchange(uint32_t of_this_warp) {
        uint32_t* partial = shared_.of_warp[place_] + group_.index * group_.warps;
        place_ ^= 1;
        if (group_.lane == 0) {
            partial[group_.warp] = of_this_warp;
        }
        // Barrier 0 is the block's own.
        ptx::bar_sync(1 + group_.index, group_.warps * kWarpLanes);
        return partial;
    }

    const RowGroup& group_;
    TotalShared& shared_;
    int place_ = 0;
};

}  // namespace token::weave::cuda
