// A build without CUDA: the functions of launch.hpp, which say so.
#include "launch.hpp"
#include "token/common/errors.hpp"

namespace token::weave::cuda {

namespace {

[[noreturn]] void refuse() {
    throw SystemFailure(
        "this build has no CUDA kernels: build it where nvcc is, with TOKEN_CUDA=on");
}

}  // namespace

void allreduce_rmsnorm(const Reduction&) {
    refuse();
}
void row_per_block_baseline(const Reduction&) {
    refuse();
}
void all_gather(const Gather&) {
    refuse();
}
int64_t channel_bytes() {
    refuse();
}
int64_t one_shot_block_bytes(int64_t, int64_t, DType, int) {
    refuse();
}
int64_t staging_bytes(int, int, int64_t) {
    refuse();
}
int rows_per_block(int64_t, DType) {
    refuse();
}
std::optional<Failure> read_failure(uintptr_t) {
    refuse();
}

}  // namespace token::weave::cuda
