#include "reduction_inputs.hpp"

#include <utility>

namespace token::weave {

namespace {

bool overlaps(const void* result, int64_t result_bytes, const std::byte* x, int64_t num_bytes) {
    const auto* first = static_cast<const std::byte*>(result);
    return first != nullptr && first < x + num_bytes && x < first + result_bytes;
}

// In one-shot every rank reads all of x until the end, so results must not be written over it.
bool is_written_over(const AllReduceRmsNormParams& params, int64_t num_bytes) {
    const auto* x = static_cast<const std::byte*>(params.x);
    const QuantizedParams& quantized = params.quantized;
    const int64_t count = params.rows * params.hidden;
    const int64_t num_scales = params.rows * quantized.scales_per_row(params.hidden);
    const std::pair<const void*, int64_t> results[] = {
        {params.out, count * element_bytes(params.out_dtype)},
        {params.residual_out, count * element_bytes(params.residual_dtype)},
        {quantized.out, count},
        {quantized.scales, num_scales * static_cast<int64_t>(sizeof(float))}};
    for (const auto& [result, result_bytes] : results) {
        if (overlaps(result, result_bytes, x, num_bytes)) {
            return true;
        }
    }
    return false;
}

}  // namespace

ReductionInputs::ReductionInputs(const comm::HostGroup& group,
                                 const AllReduceRmsNormParams& params) {
    const int64_t num_bytes = params.rows * params.hidden * element_bytes(params.dtype);
    const auto* x = static_cast<const std::byte*>(params.x);
    if (group.size() == 1) {
        bases_ = {x};
        return;
    }
    if (params.plan.algorithm == Algorithm::kOneShot && is_written_over(params, num_bytes)) {
        return;
    }
    const int slot = group.partial_slot();
    if (x == group.partial(group.rank(), slot) && num_bytes <= group.layout().partial_bytes) {
        is_in_partial_slot_ = true;
        for (int rank = 0; rank < group.size(); ++rank) {
            bases_.push_back(group.partial(rank, slot));
        }
    } else if (const comm::SymmetricRegion* region = group.find_region(x, num_bytes)) {
        region_offset_ = x - region->bases[group.rank()];
        for (const std::byte* base : region->bases) {
            bases_.push_back(base + region_offset_);
        }
    }
}

}  // namespace token::weave
