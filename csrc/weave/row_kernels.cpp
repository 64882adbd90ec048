#include "row_kernels.hpp"

#include "token/common/check.hpp"

namespace token::weave {

RowKernel RowKernels::pick(const norm::RowTypes& types,
                           norm::NormKind norm,
                           norm::Numerics numerics) const {
    const DType type = types.activation;
    const bool is_special = norm == norm::NormKind::kRms && numerics == norm::Numerics::kFused &&
                            types.input == type && types.residual == type;
    if (is_special && types.weight == type) {
        return type == DType::kFloat32 ? float32 : type == DType::kBFloat16 ? bfloat16 : float16;
    }
    if (is_special && type == DType::kBFloat16 && types.weight == DType::kFloat32) {
        return bfloat16_weight_float32;
    }
    return general;
}

std::vector<const RowKernels*> usable_row_kernels() {
    std::vector<const RowKernels*> usable;
#if defined(TOKEN_HAVE_X86_BODIES)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        // Only Cooper Lake has the one without the other; it takes the body below.
        if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi")) {
            usable.push_back(&row_kernels_avx512_bf16());
        }
        usable.push_back(&row_kernels_avx512());
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) {
        usable.push_back(&row_kernels_avx2());
    }
#endif
    usable.push_back(&row_kernels_scalar());
    return usable;
}

const RowKernels& choose_row_kernels(const std::string& name) {
    const std::vector<const RowKernels*> usable = usable_row_kernels();
    if (name == "auto") {
        return *usable.front();
    }
    std::string names;
    for (const RowKernels* kernels : usable) {
        if (name == kernels->name) {
            return *kernels;
        }
        names += std::string(names.empty() ? "" : ", ") + kernels->name;
    }
    throw InvalidArgument(concat(
        "instruction set '", name, "' cannot run on this CPU with this build; usable: ", names));
}

}  // namespace token::weave
