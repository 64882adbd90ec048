#include "row_kernels_of.hpp"
#include "token/norm/vec16_avx2.hpp"

namespace token::weave {

const RowKernels& row_kernels_avx2() {
    static constexpr RowKernels kKernels = row_kernels_of<norm::Vec16Avx2>("avx2");
    return kKernels;
}

}  // namespace token::weave
