#include "row_kernels_of.hpp"
#include "token/norm/vec16_scalar.hpp"

namespace token::weave {

const RowKernels& row_kernels_scalar() {
    static constexpr RowKernels kKernels = row_kernels_of<norm::Vec16Scalar>("scalar");
    return kKernels;
}

}  // namespace token::weave
