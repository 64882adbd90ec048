// All-gather of rows.
#include "enqueue.cuh"
#include "gather.cuh"

namespace token::weave::cuda {

void enqueue_gather_peer(const GatherParams& params, bool is_aligned, const LaunchShape& shape) {
    if (is_aligned) {
        return enqueue(all_gather_rows<Peer, true>, params, shape);
    }
    enqueue(all_gather_rows<Peer, false>, params, shape);
}

void enqueue_gather_multicast(const GatherParams& params, bool, const LaunchShape& shape) {
    enqueue(all_gather_rows<Multicast, true>, params, shape);
}

}  // namespace token::weave::cuda
