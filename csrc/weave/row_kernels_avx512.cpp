#include "row_kernels.hpp"
#include "token/norm/vec16_avx512.hpp"

namespace token::weave {

const RowKernels& row_kernels_avx512() {
    using norm::BFloat16;
    using norm::Float32;
    using Vec = norm::Vec16Avx512;
    static constexpr RowKernels kKernels{
        "avx512",
        &norm::RowReducer<Vec, Float32, Float32>::run,
        &norm::RowReducer<Vec, BFloat16, BFloat16>::run,
        &norm::RowReducer<Vec, BFloat16, Float32>::run,
    };
    return kKernels;
}

}  // namespace token::weave
