// A build without CUDA: the functions of enqueue.hpp, which say so.
#include "enqueue.hpp"
#include "token/common/errors.hpp"

namespace token::weave::cuda {

namespace {

[[noreturn]] void refuse() {
    throw SystemFailure(
        "this build has no CUDA kernels, and the group has no launcher that compiles them");
}

}  // namespace

void enqueue_two_shot_peer(const ReductionParams&, Element, const LaunchShape&) {
    refuse();
}
void enqueue_two_shot_unaligned(const ReductionParams&, Element, const LaunchShape&) {
    refuse();
}
void enqueue_two_shot_multicast(const ReductionParams&, Element, const LaunchShape&) {
    refuse();
}
void enqueue_one_shot_peer(const ReductionParams&, Element, const LaunchShape&) {
    refuse();
}
void enqueue_one_shot_multicast(const ReductionParams&, Element, const LaunchShape&) {
    refuse();
}
void enqueue_gather_peer(const GatherParams&, bool, const LaunchShape&) {
    refuse();
}
void enqueue_gather_multicast(const GatherParams&, bool, const LaunchShape&) {
    refuse();
}
void enqueue_row_per_block(const ReductionParams&, Element, const LaunchShape&) {
    refuse();
}
void enqueue_two_shot_paced(const ReductionParams&, Element, const LaunchShape&) {
    refuse();
}

}  // namespace token::weave::cuda
