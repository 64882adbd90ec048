#include "launch.hpp"
#include "launch_plan.hpp"
#include "merge_lse.cuh"
#include "token/common/check.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>

namespace token::ring::cuda {

namespace {

template <bool kVectorized, int kCapacity>
void launch(const MergeLaunch& plan, cudaStream_t stream, int64_t num_blocks) {
    MergeKernelParams<kCapacity> params{};
    params.target = plan.target;
    std::copy(plan.pieces.begin(), plan.pieces.end(), params.pieces);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(std::min(num_blocks, plan.most_blocks)));
    config.blockDim = dim3(static_cast<unsigned>(32 * plan.num_warps));
    config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
    config.stream = stream;
    const cudaError_t code =
        cudaLaunchKernelEx(&config, &merge_lse_kernel<kVectorized, kCapacity>, params);
    if (code != cudaSuccess) {
        throw SystemFailure(concat("the launch of merge_lse failed: ", cudaGetErrorString(code)));
    }
}

}  // namespace

void merge_lse(const MergeParams& params, void* stream, int num_blocks) {
    TOKEN_CHECK(num_blocks >= 0, "num_blocks must not be negative, got ", num_blocks);
    for (const MergeLaunch& plan : plan_launches(params)) {
        const bool has_few = plan.pieces.size() <= kFewPieces;
        const auto run = plan.is_vectorized
                             ? (has_few ? &launch<true, kFewPieces> : &launch<true, kMostPieces>)
                             : (has_few ? &launch<false, kFewPieces> : &launch<false, kMostPieces>);
        run(plan,
            static_cast<cudaStream_t>(stream),
            num_blocks == 0 ? plan.most_blocks : num_blocks);
    }
}

}  // namespace token::ring::cuda
