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
    // For results larger than the caches: see ReductionPlan::is_streaming.
    void (*copy_streaming)(void* to, const void* from, size_t num_bytes);
    void (*end_streaming)();

    RowKernel pick(DType activation, DType weight) const {
        if (activation == DType::kFloat32) {
            return float32;
        }
        return weight == DType::kFloat32 ? bfloat16_weight_float32 : bfloat16;
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
