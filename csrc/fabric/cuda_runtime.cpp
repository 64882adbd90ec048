#include "cuda_runtime.hpp"

#include "token/common/check.hpp"

#include <cuda_runtime_api.h>

namespace token::fabric {

namespace {

std::string dotted(int version) {
    return concat(version / 1000, ".", version % 1000 / 10);
}

}  // namespace

CudaRuntime cuda_runtime() {
    CudaRuntime found;
    found.is_compiled = true;
    cudaRuntimeGetVersion(&found.runtime_version);
    // Without a driver this succeeds and says 0; only then is the count's error another story.
    if (cudaDriverGetVersion(&found.driver_version) != cudaSuccess || found.driver_version == 0) {
        found.driver_version = 0;
        found.problem = "there is no NVIDIA driver";
        return found;
    }
    const cudaError_t status = cudaGetDeviceCount(&found.num_devices);
    if (status != cudaSuccess) {
        found.num_devices = 0;
        found.problem = concat("the driver (for CUDA ",
                               dotted(found.driver_version),
                               ") refuses the runtime (CUDA ",
                               dotted(found.runtime_version),
                               "): ",
                               cudaGetErrorString(status));
        cudaGetLastError();  // not sticky: a later call of somebody else must not find it
    } else if (found.num_devices == 0) {
        found.problem = "the driver sees no device";
    }
    return found;
}

void cuda_copy_async(void* to,
                     int64_t to_stride,
                     const void* from,
                     int64_t from_stride,
                     int64_t row_bytes,
                     int64_t rows,
                     void* stream) {
    if (row_bytes == 0 || rows == 0) {
        return;
    }
    const auto width = static_cast<size_t>(row_bytes);
    const auto queue = static_cast<cudaStream_t>(stream);
    // One long piece goes through another engine than many short ones.
    const cudaError_t status =
        rows == 1 ? cudaMemcpyAsync(to, from, width, cudaMemcpyDeviceToDevice, queue)
                  : cudaMemcpy2DAsync(to,
                                      static_cast<size_t>(to_stride),
                                      from,
                                      static_cast<size_t>(from_stride),
                                      width,
                                      static_cast<size_t>(rows),
                                      cudaMemcpyDeviceToDevice,
                                      queue);
    if (status != cudaSuccess) {
        throw SystemFailure(concat("a copy of ",
                                   rows,
                                   " x ",
                                   row_bytes,
                                   " bytes could not be enqueued: ",
                                   cudaGetErrorString(status),
                                   " (",
                                   cudaGetErrorName(status),
                                   ")"));
    }
}

}  // namespace token::fabric
