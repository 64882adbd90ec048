// From a merge to its kernels: fills their parameters, in every build.
#include "launch.hpp"

#include "enqueue.hpp"
#include "launch_plan.hpp"
#include "token/common/check.hpp"

#include <algorithm>

namespace token::ring::cuda {

namespace {

constexpr const char* kNamespace = "token::ring::cuda::";

template <int kCapacity>
fabric::KernelSource source_of(bool is_vectorized) {
    using Params = MergeKernelParams<kCapacity>;
    return {
        "ring/cuda/merge_lse.cuh",
        concat(
            kNamespace, "merge_lse_kernel<", is_vectorized ? "true, " : "false, ", kCapacity, ">"),
        concat(kNamespace, "MergeKernelParams<", kCapacity, ">"),
        sizeof(Params),
        // Products and sums are rounded one by one: the bits of the CPU's merge.
        {"--fmad=false"}};
}

template <int kCapacity>
void launch(const MergeLaunch& plan,
            const LaunchShape& shape,
            const fabric::KernelLauncher& launcher) {
    MergeKernelParams<kCapacity> params{};
    params.target = plan.target;
    std::copy(plan.pieces.begin(), plan.pieces.end(), params.pieces);
    if (!launcher) {
        return enqueue_merge(params, plan.is_vectorized, shape);
    }
    fabric::KernelLaunch described;
    described.source = source_of<kCapacity>(plan.is_vectorized);
    described.params = fabric::bytes_of(params);
    described.grid_x = shape.num_blocks;
    described.num_threads = shape.num_threads;
    described.shared_bytes = shape.shared_bytes;
    described.stream = shape.stream;
    launcher(described);
}

}  // namespace

void merge_lse(const MergeParams& params,
               void* stream,
               int num_blocks,
               const fabric::KernelLauncher& launcher) {
    TOKEN_CHECK(num_blocks >= 0, "num_blocks must not be negative, got ", num_blocks);
    for (const MergeLaunch& plan : plan_launches(params)) {
        const int64_t most = plan.most_blocks;
        const LaunchShape shape{
            static_cast<int>(num_blocks == 0 ? most : std::min<int64_t>(num_blocks, most)),
            32 * plan.num_warps,
            plan.shared_bytes,
            stream};
        if (plan.pieces.size() <= kFewPieces) {
            launch<kFewPieces>(plan, shape, launcher);
        } else {
            launch<kMostPieces>(plan, shape, launcher);
        }
    }
}

std::vector<fabric::KernelSource> kernel_sources() {
    return {source_of<kFewPieces>(true),
            source_of<kFewPieces>(false),
            source_of<kMostPieces>(true),
            source_of<kMostPieces>(false)};
}

}  // namespace token::ring::cuda
