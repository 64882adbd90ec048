// Reductions through the peers' addresses, rows of whole units.
#include "enqueue.cuh"
#include "one_shot.cuh"
#include "token/common/math.hpp"
#include "two_shot.cuh"

namespace token::weave::cuda {

static_assert(kMaxThreads == kBlockThreads && kWarpLanes == kWarpThreads &&
              kUnitElements == kRowUnitElements && kUnitsPerLane == kRowUnitsPerLane);

// The ranks' rows are those of the host's rule.
constexpr bool is_split_like_host(int64_t num_rows, int64_t parts) {
    for (int64_t index = 0; index < parts; ++index) {
        const RowSpan here = split_span(num_rows, parts, index);
        const RowRange there = split_rows(num_rows, parts, index);
        if (here.start != there.start || here.stop != there.stop) {
            return false;
        }
    }
    return true;
}
static_assert(is_split_like_host(0, 3) && is_split_like_host(2, 3) && is_split_like_host(7, 3) &&
              is_split_like_host(4097, 8));

void enqueue_two_shot_peer(const ReductionParams& params, Element dtype, const LaunchShape& shape) {
    switch (dtype) {
        case Element::kBFloat16:
            return enqueue(two_shot<Peer, BFloat16, true>, params, shape);
        case Element::kFloat16:
            return enqueue(two_shot<Peer, Float16, true>, params, shape);
        case Element::kFloat32:
            return enqueue(two_shot<Peer, Float32, true>, params, shape);
    }
}

void enqueue_one_shot_peer(const ReductionParams& params, Element dtype, const LaunchShape& shape) {
    switch (dtype) {
        case Element::kBFloat16:
            return enqueue(one_shot<Peer, BFloat16, true>, params, shape);
        case Element::kFloat16:
            return enqueue(one_shot<Peer, Float16, true>, params, shape);
        case Element::kFloat32:
            return enqueue(one_shot<Peer, Float32, true>, params, shape);
    }
}

}  // namespace token::weave::cuda
