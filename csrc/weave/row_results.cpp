#include "row_results.hpp"

#include <algorithm>
#include <cstring>

namespace token::weave {

namespace {

constexpr int64_t kCacheLine = 64;

const void* offset(const void* base, int64_t num_bytes) {
    return base == nullptr ? nullptr : static_cast<const std::byte*>(base) + num_bytes;
}

}  // namespace

RowResults::RowResults(ThreadPool& threads,
                       const RowKernels& kernels,
                       const AllReduceRmsNormParams& params,
                       int num_inputs,
                       RowRange own)
    : threads_(threads),
      kernels_(kernels),
      params_(params),
      num_inputs_(num_inputs),
      own_(own),
      types_{params.dtype, params.out_dtype, params.weight_dtype, params.residual_dtype},
      kernel_(kernels.pick(types_, params.norm, params.numerics)),
      input_row_bytes_(params.hidden * element_bytes(params.dtype)),
      results_(results_of(params, own)) {
    const int num_threads = threads.num_threads();
    if (params.weight != nullptr) {
        scratch_ = std::make_unique_for_overwrite<float[]>(num_threads *
                                                           norm::scratch_elements(params.hidden));
    }
    if (params.quantized.is_asked_for()) {
        scales_offset_ = align_up(results_[kNormed].row_bytes, kCacheLine);
        codes_offset_ = scales_offset_ + align_up(results_[kScales].row_bytes, kCacheLine);
        buffer_bytes_ = codes_offset_ + align_up(results_[kQuantized].row_bytes, kCacheLine);
        rows_in_cache_ = std::make_unique_for_overwrite<std::byte[]>(num_threads * buffer_bytes_);
    }
}

std::array<RowResults::Result, RowResults::kNumResults> RowResults::results_of(
    const AllReduceRmsNormParams& params, RowRange own) {
    const bool is_private = params.plan.output == Output::kPrivate;
    const auto result = [&](void* to, int64_t row_bytes, bool is_own_rows) {
        const bool is_exchanged = is_private && to != nullptr && row_bytes > 0 && !is_own_rows;
        const int64_t first_row = is_own_rows ? own.start : 0;
        return Result{static_cast<std::byte*>(to), row_bytes, first_row, is_exchanged};
    };
    const QuantizedParams& quantized = params.quantized;
    const int64_t hidden = params.hidden;
    std::array<Result, kNumResults> results;
    results[kScales] =
        result(quantized.scales, quantized.scales_per_row(hidden) * sizeof(float), false);
    results[kResidual] = result(params.residual_out,
                                hidden * element_bytes(params.residual_dtype),
                                params.residual_is_sharded);
    results[kNormed] = result(params.out,
                              hidden * element_bytes(params.out_dtype),
                              params.plan.output == Output::kOwnRows);
    results[kQuantized] = result(quantized.out, hidden, false);
    return results;
}

int64_t RowResults::exchanged_row_bytes(const AllReduceRmsNormParams& params) {
    int64_t num_bytes = 0;
    for (const Result& result : results_of(params, {})) {
        num_bytes += result.is_exchanged ? result.row_bytes : 0;
    }
    return num_bytes;
}

std::byte* RowResults::staged(std::byte* staging, int result, RowRange rows, int64_t row) const {
    if (staging == nullptr || !results_[result].is_exchanged) {
        return nullptr;
    }
    int64_t at = (row - rows.start) * results_[result].row_bytes;
    for (int before = 0; before < result; ++before) {
        at += results_[before].is_exchanged ? rows.count() * results_[before].row_bytes : 0;
    }
    return staging + at;
}

void RowResults::reduce(RowRange rows,
                        const std::vector<const std::byte*>& first,
                        std::byte* staging) {
    const int64_t grain =
        std::max<int64_t>(1, kMinBytesPerThread / std::max<int64_t>(input_row_bytes_, 1));
    threads_.parallel_for(rows.count(), grain, [&](int thread, RowRange part) {
        reduce_on_thread(
            thread, {rows.start + part.start, rows.start + part.stop}, rows, first, staging);
    });
}

void RowResults::reduce_on_thread(int thread,
                                  RowRange part,
                                  RowRange rows,
                                  const std::vector<const std::byte*>& first,
                                  std::byte* staging) {
    const bool is_quantized = rows_in_cache_ != nullptr;
    std::byte* const buffer =
        is_quantized ? rows_in_cache_.get() + thread * buffer_bytes_ : nullptr;
    std::vector<const void*> inputs(num_inputs_);
    norm::RowArgs args{};
    args.inputs = inputs.data();
    args.num_inputs = num_inputs_;
    args.bias = params_.bias;
    args.weight = params_.weight;
    args.norm_bias = params_.norm_bias;
    args.weight_offset = params_.weight_offset;
    args.eps = params_.eps;
    args.is_streaming = params_.plan.is_streaming && !is_quantized;
    args.types = types_;
    args.norm = params_.norm;
    args.numerics = params_.numerics;
    if (scratch_ != nullptr) {
        args.scratch = scratch_.get() + thread * norm::scratch_elements(params_.hidden);
    }
    // Without a norm or a bias the elements do not know of rows: one call for all.
    const bool is_elementwise = params_.weight == nullptr && params_.bias == nullptr;
    const int64_t step = is_elementwise ? std::max<int64_t>(part.count(), 1) : 1;
    args.hidden = params_.hidden * step;
    const Result& residual = results_[kResidual];
    const int64_t first_residual_row = params_.residual_is_sharded ? own_.start : 0;
    for (int64_t row = part.start; row < part.stop; row += step) {
        for (int rank = 0; rank < num_inputs_; ++rank) {
            inputs[rank] = first[rank] + (row - rows.start) * input_row_bytes_;
        }
        args.residual = offset(params_.residual, (row - first_residual_row) * residual.row_bytes);
        args.residual_out = residual.at(row);
        args.residual_copy = staged(staging, kResidual, rows, row);
        if (is_quantized) {
            args.out = buffer;
            kernel_(args);
            quantize(buffer, rows, row, staging);
        } else {
            args.out = results_[kNormed].at(row);
            args.out_copy = staged(staging, kNormed, rows, row);
            kernel_(args);
        }
    }
    if (params_.plan.is_streaming) {
        kernels_.end_streaming();
    }
}

// The normed row is still in the core's nearest cache: codes cost arithmetic, not memory traffic.
void RowResults::quantize(std::byte* buffer, RowRange rows, int64_t row, std::byte* staging) {
    norm::QuantizeArgs args{};
    args.row = buffer;
    args.type = params_.out_dtype;
    args.format = params_.quantized.format;
    args.hidden = params_.hidden;
    args.group_elements = params_.quantized.group_elements;
    args.scale = params_.quantized.scale;
    std::byte* const codes =
        params_.plan.is_streaming ? buffer + codes_offset_ : results_[kQuantized].at(row);
    args.out = reinterpret_cast<uint8_t*>(codes);
    args.scales = reinterpret_cast<float*>(buffer + scales_offset_);
    kernels_.quantize(args);
    deliver_row(kNormed, buffer, rows, row, staging);
    deliver_row(kScales, args.scales, rows, row, staging);
    deliver_row(kQuantized, args.out, rows, row, staging);
}

void RowResults::deliver_row(
    int result, const void* from, RowRange rows, int64_t row, std::byte* staging) {
    const size_t num_bytes = results_[result].row_bytes;
    std::byte* const to = results_[result].at(row);
    if (to != nullptr && to != from && num_bytes > 0) {
        if (params_.plan.is_streaming) {
            kernels_.copy_streaming(to, from, num_bytes);
        } else {
            std::memcpy(to, from, num_bytes);
        }
    }
    if (std::byte* const copy = staged(staging, result, rows, row); copy != nullptr) {
        std::memcpy(copy, from, num_bytes);
    }
}

void RowResults::copy_out(RowRange rows, const std::byte* staging) {
    for (const Result& result : results_) {
        if (!result.is_exchanged) {
            continue;
        }
        const int64_t num_bytes = rows.count() * result.row_bytes;
        std::byte* to = result.at(rows.start);
        threads_.parallel_for(num_bytes, kMinBytesPerThread, [&](int, RowRange range) {
            if (params_.plan.is_streaming) {
                kernels_.copy_streaming(to + range.start, staging + range.start, range.count());
                kernels_.end_streaming();
            } else {
                std::memcpy(to + range.start, staging + range.start, range.count());
            }
        });
        staging += num_bytes;
    }
}

}  // namespace token::weave
