#include "row_kernels.hpp"
#include "token/norm/vec16_scalar.hpp"

namespace token::weave {

const RowKernels& row_kernels_scalar() {
    using norm::BFloat16;
    using norm::Float32;
    using Vec = norm::Vec16Scalar;
    static constexpr RowKernels kKernels{
        "scalar",
        &norm::RowReducer<Vec, Float32, Float32>::run,
        &norm::RowReducer<Vec, BFloat16, BFloat16>::run,
        &norm::RowReducer<Vec, BFloat16, Float32>::run,
    };
    return kKernels;
}

}  // namespace token::weave
