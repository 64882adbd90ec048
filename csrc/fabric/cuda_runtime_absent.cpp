// A build without CUDA: the same functions, which say so.
#include "cuda_runtime.hpp"
#include "token/common/errors.hpp"

namespace token::fabric {

namespace {

constexpr const char* kProblem =
    "this build has no CUDA kernels: build it where nvcc is, with TOKEN_CUDA=on";

}  // namespace

CudaRuntime cuda_runtime() {
    CudaRuntime found;
    found.problem = kProblem;
    return found;
}

void cuda_copy_async(void*, int64_t, const void*, int64_t, int64_t, int64_t, void*) {
    throw SystemFailure(kProblem);
}

}  // namespace token::fabric
