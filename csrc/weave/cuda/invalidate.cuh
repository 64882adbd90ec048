// What a block leaves behind when a wait failed: NaN in every result of this rank that it would
// have written or received, so that nothing downstream looks valid. Peers that are late may still
// store into rows they own; the failure record is what decides, the NaN is for those who do not
// look.
#pragma once

#include "reach.cuh"
#include "rows.cuh"
#include "token/common/host_device.hpp"

namespace token::weave::cuda {

// All bits set is NaN in every float type here and in the scales of int8.
inline constexpr uint32_t kInvalidWord = 0xffffffffu;

TOKEN_DEVICE void invalidate_bytes(void* start, int64_t num_bytes, int index, int num_threads) {
    char* to = static_cast<char*>(start);
    if (reinterpret_cast<uintptr_t>(to) % 16 == 0 && num_bytes % 16 == 0) {
        const ptx::Vec16B invalid{{kInvalidWord, kInvalidWord, kInvalidWord, kInvalidWord}};
        for (int64_t at = int64_t{16} * index; at < num_bytes; at += int64_t{16} * num_threads) {
            store_shared(to + at, invalid);
        }
    } else {
        for (int64_t at = index; at < num_bytes; at += num_threads) {
            store_shared(to + at, static_cast<uint8_t>(kInvalidWord));
        }
    }
}

// The rows of `span` that this block's row groups stand for, each by its group. first_row: what row
// the tensors begin with.
TOKEN_DEVICE void invalidate_rows(const ReductionParams& params,
                                  int rank,
                                  const RowSpan& span,
                                  int64_t first_row,
                                  bool has_residual,
                                  const RowGroup& group,
                                  int element_bytes) {
    const int index = group.warp * kWarpLanes + group.lane, threads = group.warps * kWarpLanes;
    const auto invalidate = [&](const Region& region, int64_t row, int64_t row_bytes) {
        char* tensor = static_cast<char*>(region.by_rank[rank]);
        if (tensor != nullptr) {
            invalidate_bytes(tensor + row * row_bytes, row_bytes, index, threads);
        }
    };
    for (int64_t row = group.first_row(span); row < span.stop; row += group.row_step()) {
        const int64_t out_row = row - (params.is_out_own_rows ? first_row : 0);
        invalidate(params.out, out_row, params.hidden * element_bytes);
        invalidate(params.codes, out_row, params.hidden);
        invalidate(params.scales, out_row, int64_t{4} * params.scales_per_row);
        if (has_residual) {
            invalidate(params.residual_out,
                       row - (params.is_residual_own_rows ? first_row : 0),
                       params.hidden * (params.is_residual_fp32 ? 4 : element_bytes));
        }
    }
}

}  // namespace token::weave::cuda
