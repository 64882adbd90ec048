// What the CUDA binding files share: memory that a launch may address, and the ranks of a channel.
#pragma once

#include "../weave/cuda/launch.hpp"
#include "bindings.hpp"
#include "token/common/errors.hpp"

#include <optional>
#include <utility>
#include <vector>

namespace token::bindings {

// A region at the same offset of each rank's symmetric memory, or private memory, one address for
// each rank that the launch plays.
class CudaMemory {
  public:
    CudaMemory(std::vector<uintptr_t> by_rank, uintptr_t multicast)
        : by_rank_(std::move(by_rank)), multicast_(multicast) {}

    const std::vector<uintptr_t>& by_rank() const { return by_rank_; }
    uintptr_t multicast() const { return multicast_; }

    weave::cuda::Tensor at(int64_t offset) const {
        weave::cuda::Tensor tensor{by_rank_, multicast_ == 0 ? 0 : multicast_ + offset};
        for (uintptr_t& address : tensor.by_rank) {
            address += offset;
        }
        return tensor;
    }

  private:
    std::vector<uintptr_t> by_rank_;
    uintptr_t multicast_;
};

// Without memory `where` is an address, 0 for an absent tensor; with memory an offset into it.
inline weave::cuda::Tensor cuda_tensor(const CudaMemory* memory, int64_t where) {
    if (memory != nullptr) {
        return memory->at(where);
    }
    if (where == 0) {
        return {};
    }
    return {{static_cast<uintptr_t>(where)}, 0};
}

// The ranks of a channel, as one of them launches on it.
class CudaGroup {
  public:
    CudaGroup(int rank,
              int size,
              bool is_virtual,
              const CudaMemory& channel,
              int64_t channel_offset,
              std::vector<uintptr_t> failure_records,
              double timeout_s,
              bool checks_calls,
              fabric::KernelLauncher launcher) {
        group_.rank = rank;
        group_.size = size;
        group_.is_virtual = is_virtual;
        group_.channel = channel.at(channel_offset);
        group_.failure_record = {std::move(failure_records), 0};
        group_.timeout_ns = static_cast<uint64_t>(timeout_s * 1e9);
        group_.checks_calls = checks_calls;
        group_.launcher = std::move(launcher);
    }

    weave::cuda::Group with(bool is_multicast) const {
        weave::cuda::Group group = group_;
        group.reach = is_multicast ? weave::cuda::Reach::kMulticast : weave::cuda::Reach::kPeer;
        return group;
    }

    // Throws what the kernels of this rank have recorded, if anything. Reads pinned memory only.
    void check(const char* operation) const {
        for (const uintptr_t record : group_.failure_record.by_rank) {
            const std::optional<weave::cuda::Failure> failure = weave::cuda::read_failure(record);
            if (!failure) {
                continue;
            }
            const CommContext context{failure->rank, failure->peer, operation, failure->epoch};
            if (failure->kind == weave::cuda::FailureKind::kMismatch) {
                throw CallMismatch(failure->message, context);
            }
            throw CommTimeout(failure->message, context);
        }
    }

  private:
    weave::cuda::Group group_;
};

}  // namespace token::bindings
