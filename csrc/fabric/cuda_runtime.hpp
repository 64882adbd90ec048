// The CUDA runtime as the host code needs it. There are two bodies, of which a build has one:
// cuda_runtime.cpp over the CUDA runtime, cuda_runtime_driver.cpp over the driver alone, for builds
// without CUDA.
#pragma once

#include <cstdint>
#include <string>

namespace token::fabric {

// What this build and this machine have. Asking makes no CUDA context and needs no driver.
struct CudaRuntime {
    bool is_compiled = false;  // whether the kernels are in this build
    int runtime_version = 0;   // 13000 is CUDA 13.0; 0: built without
    int driver_version = 0;    // the highest CUDA version that the driver runs; 0: no driver
    int num_devices = 0;
    std::string problem;  // why no GPU can be used; empty if one can
};

CudaRuntime cuda_runtime();

// Enqueues a copy of `rows` pieces of `row_bytes` between two addresses of one GPU (or of GPUs that
// map each other's memory), whose pieces start `to_stride` and `from_stride` bytes apart. Returns
// at once; may be captured into a graph. Throws SystemFailure where CUDA refuses.
void cuda_copy_async(void* to,
                     int64_t to_stride,
                     const void* from,
                     int64_t from_stride,
                     int64_t row_bytes,
                     int64_t rows,
                     void* stream);

}  // namespace token::fabric
