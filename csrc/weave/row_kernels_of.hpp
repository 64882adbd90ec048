// The table of one body. A template over its vector type: each file that instantiates it is
// compiled for its own instruction set, and no two share a symbol.
#pragma once

#include "row_kernels.hpp"
#include "token/norm/row.hpp"
#include "token/norm/row_general.hpp"

namespace token::weave {

template <class Vec>
constexpr RowKernels row_kernels_of(const char* name) {
    using norm::BFloat16;
    using norm::Float16;
    using norm::Float32;
    return {
        name,
        &norm::reduce_row<Vec, Float32, Float32>,
        &norm::reduce_row<Vec, BFloat16, BFloat16>,
        &norm::reduce_row<Vec, BFloat16, Float32>,
        &norm::reduce_row<Vec, Float16, Float16>,
        &norm::reduce_row_general<Vec>,
        &norm::quantize_row<Vec>,
        [](void* to, const void* from, size_t num_bytes) {
            Vec::copy_streaming(to, from, num_bytes);
        },
        [] { Vec::end_streaming(); },
    };
}

}  // namespace token::weave
