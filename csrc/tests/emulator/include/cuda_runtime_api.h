// Shadow of the CUDA runtime: as much as the .cu units use to put kernels on a stream. A stream is
// what Machine::stream(rank) returns; nothing runs before Machine::run().
#pragma once

#include "machine.hpp"

struct CUstream_st;
using cudaStream_t = CUstream_st*;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };

inline const char* cudaGetErrorString(cudaError_t) {
    return "emulated";
}
inline const char* cudaGetErrorName(cudaError_t error) {
    return error == cudaErrorInvalidConfiguration ? "cudaErrorInvalidConfiguration"
                                                  : "cudaErrorInvalidValue";
}

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned width = 1, unsigned height = 1, unsigned depth = 1)
        : x(width), y(height), z(depth) {}
};

enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative = 2 };
struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    struct {
        int cooperative;
    } val;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute* attrs;
    unsigned numAttrs;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config,
                               void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    constexpr unsigned kMostThreads = 1024;
    const dim3 grid = config->gridDim, block = config->blockDim;
    const unsigned num_threads = block.x * block.y * block.z;
    if (config->stream == nullptr) {
        return cudaErrorInvalidValue;
    }
    if (grid.x * grid.y * grid.z == 0 || num_threads == 0 || num_threads > kMostThreads) {
        return cudaErrorInvalidConfiguration;
    }
    const auto* stream = reinterpret_cast<const token::emulator::StreamHandle*>(config->stream);
    stream->machine->launch(stream->rank,
                            {.grid = {grid.x, grid.y, grid.z},
                             .block = {block.x, block.y, block.z},
                             .shared_bytes = config->dynamicSmemBytes},
                            kernel,
                            arguments...);
    return cudaSuccess;
}

inline cudaError_t cudaGetLastError() {
    return cudaSuccess;
}
