// Bias, residual and norm of rows whose sums came from several hosts. Nothing here communicates.
#include "collectives.hpp"

#include <algorithm>
#include <memory>
#include <type_traits>

namespace token::weave {

namespace {

constexpr int64_t kMinBytesPerThread = 32 * 1024;

}  // namespace

void finish_rows(ThreadPool& threads, const RowKernels& kernels, const FinishRowsParams& params) {
    TOKEN_CHECK(!params.sums.empty(), "finish_rows needs the sums of at least one host, got none");
    TOKEN_CHECK(is_reducible(params.dtype),
                "only float32, bfloat16 and float16 are reduced, got ",
                dtype_name(params.dtype));
    TOKEN_CHECK(params.rows >= 0 && params.hidden > 0,
                "rows must be >= 0 and hidden > 0, got ",
                params.rows,
                " x ",
                params.hidden);
    const norm::RowTypes types{DType::kFloat32, params.dtype, params.weight_dtype, params.dtype};
    const RowKernel kernel = kernels.pick(types, norm::NormKind::kRms, norm::Numerics::kFused);
    const int64_t sum_bytes = params.hidden * element_bytes(DType::kFloat32);
    const int64_t row_bytes = params.hidden * element_bytes(params.dtype);
    const int64_t scratch_elements = norm::scratch_elements(params.hidden);
    const auto scratch =
        std::make_unique_for_overwrite<float[]>(threads.num_threads() * scratch_elements);
    const int64_t grain = std::max<int64_t>(1, kMinBytesPerThread / sum_bytes);
    const auto at = [](auto* base, int64_t offset) -> decltype(base) {
        using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(base)>>,
                                        const std::byte,
                                        std::byte>;
        return base == nullptr ? nullptr : static_cast<Byte*>(base) + offset;
    };
    threads.parallel_for(params.rows, grain, [&](int thread, RowRange part) {
        std::vector<const void*> inputs(params.sums.size());
        norm::RowArgs args{};
        args.inputs = inputs.data();
        args.num_inputs = static_cast<int>(inputs.size());
        args.hidden = params.hidden;
        args.bias = params.bias;
        args.weight = params.weight;
        args.weight_offset = params.weight_offset;
        args.eps = params.eps;
        args.scratch = scratch.get() + thread * scratch_elements;
        args.types = types;
        for (int64_t row = part.start; row < part.stop; ++row) {
            for (size_t host = 0; host < inputs.size(); ++host) {
                inputs[host] = at(params.sums[host], row * sum_bytes);
            }
            args.residual = at(params.residual, row * row_bytes);
            args.out = at(params.out, row * row_bytes);
            args.residual_out = at(params.residual_out, row * row_bytes);
            kernel(args);
        }
    });
}

}  // namespace token::weave
