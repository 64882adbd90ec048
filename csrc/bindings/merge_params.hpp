// The arguments of a merge, as both its forms take them from Python.
#pragma once

#include "../ring/merge_lse.hpp"
#include "bindings.hpp"

#include <array>
#include <vector>

namespace token::bindings {

using Three = std::array<int64_t, 3>;

inline ring::Strides as_strides(const Three& from) {
    return {from[0], from[1], from[2]};
}

inline ring::MergeParams merge_params(const std::vector<ring::MergePiece>& pieces,
                                      uintptr_t sinks,
                                      uintptr_t out,
                                      const Three& out_strides,
                                      int out_dtype,
                                      uintptr_t lse,
                                      const Three& lse_strides,
                                      int64_t batch,
                                      int64_t rows,
                                      int64_t heads,
                                      int64_t head_dim) {
    ring::MergeParams params;
    params.batch = batch;
    params.rows = rows;
    params.heads = heads;
    params.head_dim = head_dim;
    params.pieces = pieces;
    params.sinks = static_cast<const float*>(as_pointer(sinks));
    params.out = as_pointer(out);
    params.out_dtype = static_cast<DType>(out_dtype);
    params.out_strides = as_strides(out_strides);
    params.lse = static_cast<float*>(as_pointer(lse));
    params.lse_strides = as_strides(lse_strides);
    return params;
}

}  // namespace token::bindings
