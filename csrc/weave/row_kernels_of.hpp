// The table of one body. A template over its vector type: each file that instantiates it is
// compiled for its own instruction set, and no two share a symbol.
#pragma once

#include "row_kernels.hpp"

namespace token::weave {

template <class Vec>
constexpr RowKernels row_kernels_of(const char* name) {
    using norm::BFloat16;
    using norm::Float32;
    return {
        name,
        &norm::reduce_row<Vec, Float32, Float32>,
        &norm::reduce_row<Vec, BFloat16, BFloat16>,
        &norm::reduce_row<Vec, BFloat16, Float32>,
        &norm::reduce_row_of<Vec, BFloat16, Float32, Float32, 0>,
        &norm::reduce_row_of<Vec, Float32, BFloat16, BFloat16, 0>,
        &norm::reduce_row_of<Vec, Float32, BFloat16, Float32, 0>,
        [](void* to, const void* from, size_t num_bytes) {
            Vec::copy_streaming(to, from, num_bytes);
        },
        [] { Vec::end_streaming(); },
    };
}

}  // namespace token::weave
