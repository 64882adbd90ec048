// Puts a kernel on a stream.
#pragma once

#include "enqueue.hpp"
#include "token/common/check.hpp"

#include <cuda_runtime_api.h>

namespace token::weave::cuda {

template <class Params>
void enqueue(void (*kernel)(Params), const Params& params, const LaunchShape& shape) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    cudaLaunchConfig_t config{};
    config.gridDim =
        dim3(static_cast<unsigned>(shape.num_blocks), static_cast<unsigned>(shape.num_ranks));
    config.blockDim = dim3(static_cast<unsigned>(shape.num_threads));
    config.stream = static_cast<cudaStream_t>(shape.stream);
    config.attrs = &attribute;
    config.numAttrs = is_cooperative(shape) ? 1 : 0;
    const cudaError_t error = cudaLaunchKernelEx(&config, kernel, params);
    if (error != cudaSuccess) {
        throw SystemFailure(concat("launching ",
                                   shape.num_blocks,
                                   " x ",
                                   shape.num_ranks,
                                   " blocks of ",
                                   shape.num_threads,
                                   " threads failed: ",
                                   cudaGetErrorString(error),
                                   " (",
                                   cudaGetErrorName(error),
                                   ")"));
    }
}

}  // namespace token::weave::cuda
