// Reductions of rows that are no whole units: right for any hidden size, and not fast.
#include "enqueue.cuh"
#include "two_shot.cuh"

namespace token::weave::cuda {

void enqueue_two_shot_unaligned(const ReductionParams& params,
                                Element dtype,
                                const LaunchShape& shape) {
    switch (dtype) {
        case Element::kBFloat16:
            return enqueue(two_shot<Peer, BFloat16, false>, params, shape);
        case Element::kFloat16:
            return enqueue(two_shot<Peer, Float16, false>, params, shape);
        case Element::kFloat32:
            return enqueue(two_shot<Peer, Float32, false>, params, shape);
    }
}

}  // namespace token::weave::cuda
