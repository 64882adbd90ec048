// A build without CUDA: the function of enqueue.hpp, which says so.
#include "enqueue.hpp"
#include "token/common/errors.hpp"

namespace token::ring::cuda {

template <int kCapacity>
void enqueue_merge(const MergeKernelParams<kCapacity>&, bool, const LaunchShape&) {
    throw SystemFailure(
        "this build has no CUDA kernels, and the merge was given no launcher that compiles them");
}

template void enqueue_merge(const MergeKernelParams<kFewPieces>&, bool, const LaunchShape&);
template void enqueue_merge(const MergeKernelParams<kMostPieces>&, bool, const LaunchShape&);

}  // namespace token::ring::cuda
