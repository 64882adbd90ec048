#include "merge_row_of.hpp"

namespace token::ring {

namespace {
struct Avx2 {};
}  // namespace

const MergeKernels& merge_kernels_avx2() {
    static constexpr MergeKernels kKernels = {"avx2", &merge_row<Avx2>};
    return kKernels;
}

}  // namespace token::ring
