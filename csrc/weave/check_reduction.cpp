#include "check_reduction.hpp"

#include "row_results.hpp"
#include "token/common/check.hpp"

#include <algorithm>
#include <cmath>

namespace token::weave {

namespace {

// Which norms, residuals and quantised results there are.
void check_forms(const AllReduceRmsNormParams& params) {
    using norm::NormKind;
    using norm::Numerics;
    const bool is_drop_in = params.numerics == Numerics::kDropIn;
    TOKEN_CHECK(params.norm == NormKind::kRms || params.norm == NormKind::kLayer,
                "the norm must be RMSNorm or LayerNorm, got ",
                static_cast<int>(params.norm));
    TOKEN_CHECK(is_drop_in || params.numerics == Numerics::kFused,
                "numerics must be fused or drop-in, got ",
                static_cast<int>(params.numerics));
    TOKEN_CHECK(params.norm_bias == nullptr || params.norm == NormKind::kLayer,
                "RMSNorm has no bias of its own");
    TOKEN_CHECK(params.residual_dtype == params.out_dtype ||
                    (params.residual_dtype == DType::kFloat32 && !is_drop_in),
                "a residual of ",
                dtype_name(params.residual_dtype),
                " beside activations of ",
                dtype_name(params.out_dtype),
                ": it must be of the same type, or float32 with fused numerics");
    TOKEN_CHECK(!is_drop_in || params.weight_dtype == params.out_dtype,
                "drop-in numerics need a weight of the activation dtype ",
                dtype_name(params.out_dtype),
                ", got ",
                dtype_name(params.weight_dtype));
    const QuantizedParams& quantized = params.quantized;
    if (!quantized.is_asked_for()) {
        return;
    }
    TOKEN_CHECK(quantized.format == norm::QuantizedFormat::kFloat8E4M3 ||
                    quantized.format == norm::QuantizedFormat::kInt8,
                "quantised results are fp8 e4m3 or int8, got ",
                static_cast<int>(quantized.format));
    TOKEN_CHECK(params.plan.output == Output::kPrivate && params.weight != nullptr,
                "quantised results are private and normed");
    TOKEN_CHECK(quantized.group_elements >= 0 && quantized.group_elements % norm::kPairLanes == 0,
                "a scale is for a multiple of ",
                norm::kPairLanes,
                " elements, got ",
                quantized.group_elements);
    TOKEN_CHECK(quantized.group_elements > 0 || std::isnormal(quantized.scale),
                "a static scale must be a normal number, got ",
                quantized.scale);
}

}  // namespace

void check_reduction(const comm::HostGroup& group, const AllReduceRmsNormParams& params) {
    TOKEN_CHECK(is_reducible(params.dtype),
                "only float32, bfloat16 and float16 are reduced, got ",
                dtype_name(params.dtype));
    TOKEN_CHECK(
        params.out_dtype == params.dtype ||
            (params.out_dtype == DType::kFloat32 && params.plan.output == Output::kOwnRows &&
             params.weight == nullptr && params.bias == nullptr && params.residual == nullptr),
        "sums of ",
        dtype_name(params.dtype),
        " come out as ",
        dtype_name(params.out_dtype),
        " only from a plain reduce-scatter to float32");
    TOKEN_CHECK(params.rows >= 0 && params.hidden > 0,
                "rows must be >= 0 and hidden > 0, got ",
                params.rows,
                " x ",
                params.hidden);
    TOKEN_CHECK(params.hidden <= INT32_MAX, "hidden must be below 2^31, got ", params.hidden);
    check_forms(params);
    const ReductionPlan& plan = params.plan;
    TOKEN_CHECK(plan.block_rows >= 1, "block_rows must be at least 1, got ", plan.block_rows);
    const bool is_one_shot = plan.algorithm == Algorithm::kOneShot;
    TOKEN_CHECK(
        !(is_one_shot && plan.output != Output::kPrivate),
        "one-shot gives every rank a private result; shared and scattered outputs are two-shot");
    TOKEN_CHECK(plan.output == Output::kPrivate || params.residual_out == nullptr ||
                    group.size() == 1 || params.residual_is_sharded,
                "shared and scattered outputs keep the residual row-sharded: nothing brings other "
                "rows here");
    TOKEN_CHECK(!(is_one_shot && params.residual_is_sharded && group.size() > 1),
                "a row-sharded residual needs the two-shot algorithm");
    if (group.size() == 1) {
        return;
    }
    const int64_t row_bytes = params.hidden * element_bytes(params.dtype);
    const int64_t in_bytes = row_bytes * (is_one_shot ? 1 : group.size() - 1);
    const int64_t out_bytes = is_one_shot ? 0 : RowResults::exchanged_row_bytes(params);
    const int64_t staged = plan.block_rows * std::max(in_bytes, out_bytes);
    TOKEN_CHECK(staged <= group.layout().staging_bytes,
                "a block of ",
                plan.block_rows,
                " rows of ",
                params.hidden,
                " ",
                dtype_name(params.dtype),
                " needs ",
                staged,
                " bytes of staging, the world has ",
                group.layout().staging_bytes);
}

}  // namespace token::weave
