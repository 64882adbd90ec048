// The row reduction in the instruction sets this build has, and the choice among them.
#pragma once

#include "token/common/dtype.hpp"
#include "token/norm/quantize_row.hpp"
#include "token/norm/row_args.hpp"

#include <string>
#include <vector>

namespace token::weave {

using RowKernel = void (*)(const norm::RowArgs&);

struct RowKernels {
    const char* name;
    // RMSNorm with the roundings of Numerics::kFused, all of one type but perhaps the weight.
    RowKernel float32;
    RowKernel bfloat16;
    RowKernel bfloat16_weight_float32;
    RowKernel float16;
    // Everything, as RowArgs says it.
    RowKernel general;
    void (*quantize)(const norm::QuantizeArgs&);
    // For results larger than the caches: see ReductionPlan::is_streaming.
    void (*copy_streaming)(void* to, const void* from, size_t num_bytes);
    void (*end_streaming)();

    // The fastest kernel that does it.
    RowKernel pick(const norm::RowTypes& types, norm::NormKind norm, norm::Numerics numerics) const;
};

const RowKernels& row_kernels_scalar();
#if defined(TOKEN_HAVE_X86_BODIES)
const RowKernels& row_kernels_avx2();
const RowKernels& row_kernels_avx512();
const RowKernels& row_kernels_avx512_bf16();
#endif

// The bodies this CPU can run, widest first.
std::vector<const RowKernels*> usable_row_kernels();

// `name` one of the usable bodies, or "auto" for the widest. InvalidArgument names those there are.
const RowKernels& choose_row_kernels(const std::string& name);

}  // namespace token::weave
