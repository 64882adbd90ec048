// Reductions through NVLink multicast. The switch adds 16-bit types only.
#include "enqueue.cuh"
#include "one_shot.cuh"
#include "two_shot.cuh"

namespace token::weave::cuda {

void enqueue_two_shot_multicast(const ReductionParams& params,
                                Element dtype,
                                const LaunchShape& shape) {
    if (dtype == Element::kFloat16) {
        return enqueue(two_shot<Multicast, Float16, true>, params, shape);
    }
    enqueue(two_shot<Multicast, BFloat16, true>, params, shape);
}

void enqueue_one_shot_multicast(const ReductionParams& params,
                                Element dtype,
                                const LaunchShape& shape) {
    if (dtype == Element::kFloat16) {
        return enqueue(one_shot<Multicast, Float16, true>, params, shape);
    }
    enqueue(one_shot<Multicast, BFloat16, true>, params, shape);
}

}  // namespace token::weave::cuda
