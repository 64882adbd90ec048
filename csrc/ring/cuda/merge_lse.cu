// The merge's kernels, compiled in.
#include "enqueue.hpp"
#include "merge_lse.cuh"
#include "token/common/check.hpp"

#include <cuda_runtime_api.h>

namespace token::ring::cuda {

template <int kCapacity>
void enqueue_merge(const MergeKernelParams<kCapacity>& params,
                   bool is_vectorized,
                   const LaunchShape& shape) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(shape.num_blocks));
    config.blockDim = dim3(static_cast<unsigned>(shape.num_threads));
    config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
    config.stream = static_cast<cudaStream_t>(shape.stream);
    const cudaError_t code = cudaLaunchKernelEx(
        &config,
        is_vectorized ? &merge_lse_kernel<true, kCapacity> : &merge_lse_kernel<false, kCapacity>,
        params);
    if (code != cudaSuccess) {
        throw SystemFailure(concat("the launch of merge_lse failed: ", cudaGetErrorString(code)));
    }
}

template void enqueue_merge(const MergeKernelParams<kFewPieces>&, bool, const LaunchShape&);
template void enqueue_merge(const MergeKernelParams<kMostPieces>&, bool, const LaunchShape&);

}  // namespace token::ring::cuda
