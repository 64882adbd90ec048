#include "merge_row_of.hpp"

namespace token::ring {

namespace {
struct Avx512 {};
}  // namespace

const MergeKernels& merge_kernels_avx512() {
    static constexpr MergeKernels kKernels = {"avx512", &merge_row<Avx512>};
    return kKernels;
}

}  // namespace token::ring
