// Sum, bias, residual and norm of rows that came from several hosts. Nothing here communicates.
#include "collectives.hpp"

#include <algorithm>
#include <memory>
#include <type_traits>

namespace token::weave {

namespace {

constexpr int64_t kMinBytesPerThread = 32 * 1024;

}  // namespace

void finish_rows(ThreadPool& threads, const RowKernels& kernels, const FinishRowsParams& params) {
    TOKEN_CHECK(!params.inputs.empty(), "finish_rows needs at least one input, got none");
    TOKEN_CHECK(is_reducible(params.dtype),
                "only float32, bfloat16 and float16 are reduced, got ",
                dtype_name(params.dtype));
    TOKEN_CHECK(params.input_dtype == params.dtype || params.input_dtype == DType::kFloat32,
                "inputs of a ",
                dtype_name(params.dtype),
                " result are of that type or float32, got ",
                dtype_name(params.input_dtype));
    TOKEN_CHECK(params.rows >= 0 && params.hidden > 0,
                "rows must be >= 0 and hidden > 0, got ",
                params.rows,
                " x ",
                params.hidden);
    const norm::RowTypes types{params.input_dtype, params.dtype, params.weight_dtype, params.dtype};
    const RowKernel kernel = kernels.pick(types, norm::NormKind::kRms, norm::Numerics::kFused);
    const int64_t input_bytes = params.hidden * element_bytes(params.input_dtype);
    const int64_t row_bytes = params.hidden * element_bytes(params.dtype);
    const int64_t scratch_elements = norm::scratch_elements(params.hidden);
    std::unique_ptr<float[]> scratch;
    if (params.weight != nullptr) {
        scratch = std::make_unique_for_overwrite<float[]>(threads.num_threads() * scratch_elements);
    }
    const int64_t grain = std::max<int64_t>(1, kMinBytesPerThread / input_bytes);
    const auto at = [](auto* base, int64_t offset) -> decltype(base) {
        using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(base)>>,
                                        const std::byte,
                                        std::byte>;
        return base == nullptr ? nullptr : static_cast<Byte*>(base) + offset;
    };
    threads.parallel_for(params.rows, grain, [&](int thread, RowRange part) {
        std::vector<const void*> inputs(params.inputs.size());
        norm::RowArgs args{};
        args.inputs = inputs.data();
        args.num_inputs = static_cast<int>(inputs.size());
        args.bias = params.bias;
        args.weight = params.weight;
        args.weight_offset = params.weight_offset;
        args.eps = params.eps;
        args.is_streaming = params.is_streaming;
        args.types = types;
        if (scratch != nullptr) {
            args.scratch = scratch.get() + thread * scratch_elements;
        }
        // Without a norm or a bias the elements do not know of rows: one call for all.
        const bool is_elementwise = params.weight == nullptr && params.bias == nullptr;
        const int64_t step = is_elementwise ? std::max<int64_t>(part.count(), 1) : 1;
        args.hidden = params.hidden * step;
        for (int64_t row = part.start; row < part.stop; row += step) {
            for (size_t index = 0; index < inputs.size(); ++index) {
                inputs[index] = at(params.inputs[index], row * input_bytes);
            }
            args.residual = at(params.residual, row * row_bytes);
            args.out = at(params.out, row * row_bytes);
            args.out_copy = at(params.out_copy, row * row_bytes);
            args.residual_out = at(params.residual_out, row * row_bytes);
            kernel(args);
        }
        if (params.is_streaming) {
            kernels.end_streaming();
        }
    });
}

}  // namespace token::weave
