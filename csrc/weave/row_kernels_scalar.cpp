#include "row_kernels.hpp"
#include "token/norm/vec16_scalar.hpp"

namespace token::weave {

const RowKernels& row_kernels_scalar() {
    using norm::BFloat16;
    using norm::Float32;
    using Vec = norm::Vec16Scalar;
    static constexpr RowKernels kKernels{
        "scalar",
        &norm::reduce_row<Vec, Float32, Float32>,
        &norm::reduce_row<Vec, BFloat16, BFloat16>,
        &norm::reduce_row<Vec, BFloat16, Float32>,
        [](void* to, const void* from, size_t num_bytes) {
            Vec::copy_streaming(to, from, num_bytes);
        },
        [] { Vec::end_streaming(); },
    };
    return kKernels;
}

}  // namespace token::weave
