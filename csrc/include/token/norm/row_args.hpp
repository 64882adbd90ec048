// What a row kernel is given.
#pragma once

#include "token/common/dtype.hpp"
#include "token/common/host_device.hpp"
#include "token/norm/lanes.hpp"

#include <cstdint>

namespace token::norm {

// Values cross the binding.
enum class NormKind : int32_t {
    kRms = 0,    // s * rsqrt(mean(s^2) + eps) * weight
    kLayer = 1,  // (s - mean(s)) * rsqrt(var(s) + eps) * weight + norm_bias
};

// Where values are rounded. Values cross the binding.
enum class Numerics : int32_t {
    kFused = 0,   // the sum over ranks, then only the results
    kDropIn = 1,  // after every step, as separate framework operations do
};

struct RowTypes {
    DType input;       // partial sums
    DType activation;  // bias and the normed result
    DType weight;      // weight and norm_bias
    DType residual;    // residual and residual_out
};

struct RowArgs {
    const void* const* inputs;  // [num_inputs] this row of every rank's partial sum, in rank order
    int num_inputs;
    int64_t hidden;
    const void* residual;   // [hidden]; may be null
    const void* bias;       // [hidden] added to the sum; may be null
    const void* weight;     // [hidden]; null means: no norm, out is the sum
    const void* norm_bias;  // [hidden] of a LayerNorm; may be null
    float weight_offset;    // added to weight: 1 for Gemma
    float eps;
    float* scratch;       // [scratch_elements(hidden)]; unused without a norm
    void* out;            // [hidden]
    void* residual_out;   // [hidden] the sum before the norm; may be null, may be `residual`
    void* out_copy;       // second destination of out; may be null
    void* residual_copy;  // second destination of residual_out; may be null
    bool is_streaming;    // out goes around the cache; the caller ends with end_streaming
    // Of the general kernel. The special ones know theirs when they are compiled.
    RowTypes types;
    NormKind norm;
    Numerics numerics;
};

// fp32 values a row needs between its passes: whole pairs.
TOKEN_INLINE int64_t scratch_elements(int64_t hidden) {
    return (hidden + kPairLanes - 1) / kPairLanes * kPairLanes;
}

}  // namespace token::norm
