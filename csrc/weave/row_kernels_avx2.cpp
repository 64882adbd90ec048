#include "row_kernels_of.hpp"
#include "token/norm/quantize_row_avx2.hpp"
#include "token/norm/vec16_avx2.hpp"

namespace token::weave {

const RowKernels& row_kernels_avx2() {
    static constexpr RowKernels kKernels = [] {
        RowKernels kernels = row_kernels_of<norm::Vec16Avx2>("avx2");
        kernels.quantize = &norm::quantize_row_by_lookup<norm::Avx2Lookup>;
        return kernels;
    }();
    return kKernels;
}

}  // namespace token::weave
