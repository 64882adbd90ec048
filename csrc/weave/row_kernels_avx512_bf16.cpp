#include "row_kernels_of.hpp"
#include "token/norm/quantize_row_vbmi.hpp"
#include "token/norm/vec16_avx512.hpp"

namespace token::weave {

const RowKernels& row_kernels_avx512_bf16() {
    static constexpr RowKernels kKernels = [] {
        using Vec = norm::Vec16Avx512<norm::NarrowByInstruction>;
        RowKernels kernels = row_kernels_of<Vec>("avx512_bf16");
        kernels.quantize = &norm::quantize_row_by_lookup<norm::VbmiLookup>;
        return kernels;
    }();
    return kKernels;
}

}  // namespace token::weave
