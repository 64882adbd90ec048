// A build without CUDA: the function of launch.hpp, which says so.
#include "launch.hpp"
#include "token/common/errors.hpp"

namespace token::ring::cuda {

void merge_lse(const MergeParams&, void*, int) {
    throw SystemFailure(
        "this build has no CUDA kernels: build it where nvcc is, with TOKEN_CUDA=on");
}

}  // namespace token::ring::cuda
