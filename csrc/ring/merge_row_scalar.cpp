#include "merge_row_of.hpp"

namespace token::ring {

namespace {
struct Scalar {};
}  // namespace

const MergeKernels& merge_kernels_scalar() {
    static constexpr MergeKernels kKernels = {"scalar", &merge_row<Scalar>};
    return kKernels;
}

}  // namespace token::ring
