// The row reduction in the instruction sets this build has, and the choice among them.
#pragma once

#include "token/common/dtype.hpp"
#include "token/norm/row.hpp"

#include <string>
#include <vector>

namespace token::weave {

using RowKernel = void (*)(const norm::RowArgs&);

struct RowKernels {
    const char* name;
    RowKernel float32;
    RowKernel bfloat16;
    RowKernel bfloat16_weight_float32;
    // Between hosts sums travel in fp32: not rounded on the way, once at the end.
    RowKernel bfloat16_to_float32;
    RowKernel float32_to_bfloat16;
    RowKernel float32_to_bfloat16_weight_float32;
    // For results larger than the caches: see ReductionPlan::is_streaming.
    void (*copy_streaming)(void* to, const void* from, size_t num_bytes);
    void (*end_streaming)();

    // input: of the partial sums; activation: of residual, bias and results.
    RowKernel pick(DType input, DType activation, DType weight) const {
        const bool weight_is_float32 = weight == DType::kFloat32;
        if (activation == DType::kFloat32) {
            return input == DType::kFloat32 ? float32 : bfloat16_to_float32;
        }
        if (input == DType::kFloat32) {
            return weight_is_float32 ? float32_to_bfloat16_weight_float32 : float32_to_bfloat16;
        }
        return weight_is_float32 ? bfloat16_weight_float32 : bfloat16;
    }
};

const RowKernels& row_kernels_scalar();
#if defined(TOKEN_HAVE_AVX512)
const RowKernels& row_kernels_avx512();
const RowKernels& row_kernels_avx512_bf16();
#endif

// The bodies this CPU can run, widest first.
std::vector<const RowKernels*> usable_row_kernels();

// `name` one of the usable bodies, or "auto" for the widest. InvalidArgument names those there are.
const RowKernels& choose_row_kernels(const std::string& name);

}  // namespace token::weave
