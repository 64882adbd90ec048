#include "row_kernels_of.hpp"
#include "token/norm/vec16_avx512.hpp"

namespace token::weave {

const RowKernels& row_kernels_avx512_bf16() {
    static constexpr RowKernels kKernels =
        row_kernels_of<norm::Vec16Avx512<norm::NarrowByInstruction>>("avx512_bf16");
    return kKernels;
}

}  // namespace token::weave
